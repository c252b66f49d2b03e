"""Locations: splitting and joining paths and URIs, and creating the client of a bucket's store.

`s3://BUCKET/KEY` is resolved as by the AWS tools: `AWS_ENDPOINT_URL_S3` or `AWS_ENDPOINT_URL`, `AWS_REGION`,
credentials from the environment, the shared files (static keys, `AWS_PROFILE`) or the machine. The query may give
options, as in `s3://bucket/photos?endpoint_override=HOST:PORT&scheme=http&region=REGION` or `?anonymous=true`.
`gs://BUCKET/KEY`, `az://CONTAINER/KEY` and `abfss://CONTAINER@ACCOUNT.dfs.core.windows.net/KEY` are resolved by the
environment variables of Google's and Azure's tools.
"""

from __future__ import annotations

import configparser
import functools
import os
import re
from datetime import timedelta
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, unquote, urlsplit

import obstore.store

from hashlight.engine.errors import PlaceError

BUCKET_SCHEMES = ("s3", "gs", "gcs", "az", "abfs", "abfss")
WEB_SCHEMES = ("http", "https")

# In other URIs a question mark may be part of a name.
_OPTIONS = re.compile(r"\?(?:endpoint_override|region|scheme|anonymous)=.*$")
_SCHEME = re.compile(r"[a-zA-Z][a-zA-Z0-9+.-]+")
# The places' own retries come on top of these; see `engine.places.failures`.
_RETRIES = {"max_retries": 3, "retry_timeout": timedelta(seconds=60)}
_TIMEOUT = timedelta(seconds=60)


def is_local(location: str) -> bool:
    """Whether a location is a local path."""
    return "://" not in location


def is_web(location: str) -> bool:
    """Whether a location is the URL of a web server's file."""
    return location.partition("://")[0].lower() in WEB_SCHEMES and not is_local(location)


def split_options(location: str) -> tuple[str, str]:
    """Split a location into itself and the options in its query (with the `?`), which belong to the store."""
    match = None if is_local(location) or is_web(location) else _OPTIONS.search(location)
    return (location[: match.start()], match[0]) if match else (location, "")


def normalise(location: str | Path) -> str:
    """Return an absolute path without symbolic links, or a URI, without a trailing slash."""
    text = str(location).removeprefix("file://")
    return str(Path(text).resolve()) if is_local(text) else without_slash(text)


def without_slash(uri: str) -> str:
    """Return a URI without trailing slashes, but with those that follow its scheme."""
    scheme, sign, rest = uri.partition("://")
    return f"{scheme}{sign}{rest.rstrip('/')}"


def split_name(location: str) -> tuple[str, str]:
    """Split the location of a file into that of its folder and the file's name.

    Raises
    ------
    PlaceError
        If it is the location of a whole bucket or server: what is left of it would be a local path.
    """
    base, options = split_options(location)
    folder, _, name = base.rpartition("/")
    if folder.endswith(":/") and not is_local(base):
        raise PlaceError(f"{without_credentials(base)} does not name a file: expected {folder}/PLACE/NAME")
    return folder + options, name


def join(location: str, name: str) -> str:
    """Return the location of a name in a place."""
    base, options = split_options(location)
    return f"{base.rstrip('/')}/{name}{options}" if name else location


def without_credentials(location: str) -> str:
    """Return a location for messages, without options and without any `KEY:SECRET@` in the URI."""
    base = split_options(location)[0]
    if is_local(base):
        return base
    scheme, _, rest = base.partition("://")
    place, slash, key = rest.partition("/")
    user, at, host = place.rpartition("@")
    # In `abfss://CONTAINER@ACCOUNT` the first part is not a secret.
    kept = host if ":" in user or not scheme.startswith("abfs") else user + at + host
    return f"{scheme}://{kept}{slash}{key}"


def split_bucket(location: str) -> tuple[Any, str]:
    """Return the store of a bucket's URI, and the key in it without leading or trailing slashes.

    Raises
    ------
    PlaceError
        If the URI does not name a bucket, or its client cannot be created.
    """
    base, options = split_options(location)
    scheme, _, rest = base.partition("://")
    place, _, key = rest.partition("/")
    return _store_of(scheme.lower(), place, options), key.strip("/")


@functools.lru_cache(32)
def _store_of(scheme: str, place: str, options: str) -> Any:
    query = {name: values[0] for name, values in parse_qs(options.removeprefix("?")).items()}
    where = without_credentials(f"{scheme}://{place}")
    if not place.rpartition("@")[2]:
        raise PlaceError(f"{where} does not name a bucket: expected {scheme}://BUCKET/NAME")
    try:
        if scheme == "s3":
            return _s3(place, query)
        if scheme in ("gs", "gcs"):
            return _gcs(place, query)
        return _azure(scheme, place, query)
    except (obstore.exceptions.BaseError, ValueError, TypeError) as error:
        reason = str(error).partition("\n")[0]
        raise PlaceError(f"{where} cannot be reached: {reason}") from None


def _endpoint(query: dict[str, str]) -> str | None:
    override = query.get("endpoint_override")
    return f"{query.get('scheme', 'https')}://{override}" if override else None


def _shared(endpoint: str | None) -> dict[str, Any]:
    plain = endpoint is not None and endpoint.startswith("http://")
    return {"client_options": {"allow_http": plain, "timeout": _TIMEOUT}, "retry_config": _RETRIES}


def _s3(place: str, query: dict[str, str]) -> Any:
    user, _, bucket = place.rpartition("@")
    profile = _aws_profile()
    endpoint = (
        _endpoint(query)
        or os.environ.get("AWS_ENDPOINT_URL_S3")
        or os.environ.get("AWS_ENDPOINT_URL")
        or profile.get("endpoint_url")
    )
    region = query.get("region") or os.environ.get("AWS_REGION") or os.environ.get("AWS_DEFAULT_REGION")
    config: dict[str, Any] = {"region": region or profile.get("region") or "us-east-1"}
    if endpoint:
        config |= {"endpoint": endpoint, "virtual_hosted_style_request": False}
    if query.get("anonymous") == "true":
        config["skip_signature"] = True
    elif user:
        key, _, secret = user.partition(":")
        config |= {"access_key_id": unquote(key), "secret_access_key": unquote(secret)}
    elif "AWS_ACCESS_KEY_ID" not in os.environ and {"aws_access_key_id", "aws_secret_access_key"} <= profile.keys():
        config |= {"access_key_id": profile["aws_access_key_id"], "secret_access_key": profile["aws_secret_access_key"]}
        if "aws_session_token" in profile:
            config["session_token"] = profile["aws_session_token"]
    return obstore.store.S3Store(bucket, **config, **_shared(endpoint))


def _aws_profile() -> dict[str, str]:
    """Return the settings of the current profile, with its static keys, from the AWS tools' shared files."""
    name = os.environ.get("AWS_PROFILE", "default")
    home = Path.home() / ".aws"
    config = configparser.RawConfigParser()
    config.read(os.environ.get("AWS_CONFIG_FILE", home / "config"))
    credentials = configparser.RawConfigParser()
    credentials.read(os.environ.get("AWS_SHARED_CREDENTIALS_FILE", home / "credentials"))
    section = name if name == "default" else f"profile {name}"
    found = dict(config[section]) if config.has_section(section) else {}
    return found | (dict(credentials[name]) if credentials.has_section(name) else {})


def _gcs(place: str, query: dict[str, str]) -> Any:
    endpoint = _endpoint(query)
    config: dict[str, Any] = {"base_url": endpoint} if endpoint else {}
    if query.get("anonymous") == "true":
        config["skip_signature"] = True
    return obstore.store.GCSStore(place.rpartition("@")[2], **config, **_shared(endpoint))


def _azure(scheme: str, place: str, query: dict[str, str]) -> Any:
    endpoint = _endpoint(query)
    container, _, host = place.rpartition("@") if "@" in place else (place, "", "")
    config: dict[str, Any] = {"endpoint": endpoint} if endpoint else {}
    if host:
        config["account_name"] = host.partition(".")[0]
    if query.get("anonymous") == "true":
        config["skip_signature"] = True
    return obstore.store.AzureStore(container, **config, **_shared(endpoint))


def scheme_of(location: str) -> str:
    """Return the scheme of a URI.

    Raises
    ------
    PlaceError
        If it has none.
    """
    scheme = urlsplit(location).scheme if _SCHEME.match(location) else ""
    if not scheme:
        raise PlaceError(
            f"{without_credentials(location)} is not a URI: expected a path or SCHEME://PLACE/NAME, as in "
            "s3://bucket/photos"
        )
    return scheme.lower()
