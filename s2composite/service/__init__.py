"""Windows and jobs over HTTP: one service, and the client that sends it the windows of a job."""
