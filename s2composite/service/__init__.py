"""Windows and jobs over HTTP: the service, and the client that sends it the windows of a job."""
