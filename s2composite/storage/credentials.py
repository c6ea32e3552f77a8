"""Credentials: who this process is on Google Cloud Storage and on S3, for fsspec and for GDAL.

The environment decides, in the process that asks, so that workers use their own: credentials where some can be found,
otherwise anonymous access, which is all that public buckets need. Nothing here returns or prints a secret.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from functools import lru_cache
from pathlib import Path
from typing import Any

__all__ = ["gcs_options", "gcs_token", "gdal_gcs", "gdal_s3", "plain_gcs", "s3_anonymous", "s3_options"]

_YES = ("1", "yes", "true", "on")
_DMI = Path("/sys/class/dmi/id")


# --- Google ---------------------------------------------------------------------------------------------------------


def gcs_token() -> str | None:
    """Return what gcsfs logs in with: ``"anon"``, ``"google_default"``, or None (ask the machine)."""
    if _gcs_emulator() or _is_set("GS_NO_SIGN_REQUEST"):
        return "anon"
    if _gcs_credentials_file() is not None:
        return "google_default"
    named = any(os.environ.get(name) for name in ("GCE_METADATA_HOST", "K_SERVICE", "CLOUD_RUN_JOB"))
    on_google_cloud = named or _is_set("CPL_MACHINE_IS_GCE") or _machine("product_name").startswith("Google")
    # gcsfs would wait for the metadata server for seconds on machines that have none.
    return None if on_google_cloud else "anon"


def gcs_options() -> dict[str, Any]:
    """Return the options of gcsfs."""
    options: dict[str, Any] = {
        "token": gcs_token(),
        "session_kwargs": {"trust_env": True},
        # Listings of a bucket that others write to must be fresh.
        "use_listings_cache": False,
    }
    if endpoint := _gcs_emulator():
        # gcsfs would ask the emulator over gRPC what kind its bucket is and hang for a minute.
        os.environ.setdefault("GCSFS_EXPERIMENTAL_ZB_HNS_SUPPORT", "false")
        options["endpoint_url"] = endpoint
    return options


def plain_gcs(options: Mapping[str, Any]) -> Any:
    """Return gcsfs without its support of zonal buckets.

    That asks over gRPC what kind a bucket is; emulators do not answer, and anonymous callers are refused at every
    access anew. The environment variable that switches it off is read only once, when gcsfs is imported.
    """
    from gcsfs.core import GCSFileSystem  # noqa: PLC0415 - 0.9 s that only users of gs:// should pay

    return GCSFileSystem(**options)


def gdal_gcs() -> dict[str, str]:
    """Return GDAL's configuration options for gs://."""
    endpoint, token = _gcs_emulator(), gcs_token()
    options = {"CPL_GS_ENDPOINT": f"{endpoint}/"} if endpoint else {}
    if token == "anon":  # noqa: S105 - says that there is none
        return options | {"GS_NO_SIGN_REQUEST": "YES"}
    # GDAL does not look where gcloud puts its credentials.
    return options | ({"GOOGLE_APPLICATION_CREDENTIALS": str(_gcs_credentials_file())} if token else {})


def _gcs_emulator() -> str | None:
    host = os.environ.get("STORAGE_EMULATOR_HOST", "").rstrip("/")
    if host in ("", "default"):
        return None
    return host if "://" in host else f"http://{host}"


def _gcs_credentials_file() -> Path | None:
    """Return the file with Google credentials that the environment names or gcloud has left."""
    if named := os.environ.get("GOOGLE_APPLICATION_CREDENTIALS"):
        return Path(named)
    folder = os.environ.get("CLOUDSDK_CONFIG") or Path("~/.config/gcloud").expanduser()
    file = Path(folder) / "application_default_credentials.json"
    return file if file.exists() else None


# --- Amazon, and all that speak its protocol ------------------------------------------------------------------------


def s3_anonymous() -> bool:
    """Return whether S3 is used without credentials: botocore finds none."""
    if _is_set("AWS_NO_SIGN_REQUEST"):
        return True
    # Looking takes 10 ms, so it is done once for an environment, not for every range that is read.
    return not _aws_credentials_exist(tuple(sorted((k, v) for k, v in os.environ.items() if k.startswith("AWS_"))))


def s3_options() -> dict[str, Any]:
    """Return the options of s3fs."""
    options: dict[str, Any] = {"anon": s3_anonymous(), "use_listings_cache": False}
    if endpoint := _s3_endpoint():
        options["endpoint_url"] = endpoint
    if os.environ.get("AWS_REQUEST_PAYER") == "requester":  # GDAL's switch
        options["requester_pays"] = True
    return options


def gdal_s3() -> dict[str, str]:
    """Return GDAL's configuration options for s3://."""
    options = {"AWS_NO_SIGN_REQUEST": "YES"} if s3_anonymous() else {}
    if endpoint := _s3_endpoint():
        scheme, _, host = endpoint.partition("://")
        https = "NO" if scheme == "http" else "YES"
        options |= {"AWS_S3_ENDPOINT": host, "AWS_HTTPS": https, "AWS_VIRTUAL_HOSTING": "FALSE"}
    return options


def _s3_endpoint() -> str | None:
    """Return the server that stands in for Amazon's (MinIO, Ceph, an emulator)."""
    named = os.environ.get("AWS_ENDPOINT_URL_S3") or os.environ.get("AWS_ENDPOINT_URL")
    return named.rstrip("/") if named else None


@lru_cache(maxsize=8)
def _aws_credentials_exist(environment: tuple[tuple[str, str], ...]) -> bool:
    """Return whether botocore finds credentials; `environment` is what its answer depends on."""
    # 0.1 s that only users of s3:// should pay
    from botocore.exceptions import BotoCoreError  # noqa: PLC0415
    from botocore.session import Session  # noqa: PLC0415

    try:
        chain = Session().get_component("credential_provider")
        named = "AWS_EC2_METADATA_SERVICE_ENDPOINT" in dict(environment)
        if not (named or _machine("sys_vendor").startswith("Amazon")):
            # Elsewhere the metadata server does not answer, which would take seconds to find out.
            chain.remove("iam-role")
        return chain.load_credentials() is not None
    except BotoCoreError:
        # There is something, but it is wrong (an unknown profile): s3fs will say so when it is used.
        return True


def _machine(name: str) -> str:
    """Return what the firmware says of the machine; empty where it says nothing."""
    try:
        return (_DMI / name).read_text(encoding="utf-8").strip()
    except OSError:
        return ""


def _is_set(name: str) -> bool:
    return os.environ.get(name, "").lower() in _YES
