"""Certificates for an endpoint, found by a name: DIPOLE_TLS_DIR/<name>/ with ca.pem, client.pem and client.key.

    ca.pem       whom to believe instead of the public authorities: for an endpoint of your own
    client.pem   who we are, with client.key beside it or inside it: for an endpoint that asks (mTLS)

Either may be absent. Whoever asks the endpoint reads them: rank worker, API, trainer worker, `dipole eval`. A caller
gives a name and never a path.
"""

from __future__ import annotations

import ssl
from pathlib import Path

import httpx

from dipole.errors import ConfigurationError

CA_FILE, CLIENT_CERTIFICATE_FILE, CLIENT_KEY_FILE = "ca.pem", "client.pem", "client.key"


def ssl_context(name: str | None, tls_dir: Path | None) -> ssl.SSLContext | bool:
    """What httpx takes as `verify`; True without a name. Raises ConfigurationError that names the folder and file."""
    if name is None:
        return True
    folder = _certificates_folder(name, tls_dir)
    ca, client, key = (folder / each for each in (CA_FILE, CLIENT_CERTIFICATE_FILE, CLIENT_KEY_FILE))
    if key.is_file() and not client.is_file():
        raise ConfigurationError(
            f"tls {name!r}: {folder} holds {CLIENT_KEY_FILE}, but no {CLIENT_CERTIFICATE_FILE} that belongs to it"
        )
    if not ca.is_file() and not client.is_file():
        raise ConfigurationError(
            f"tls {name!r}: {folder} holds neither {CA_FILE} nor {CLIENT_CERTIFICATE_FILE}: put one of them there"
        )
    if ca.is_file():
        try:
            made = ssl.create_default_context(cafile=str(ca))
        except (OSError, ssl.SSLError) as error:
            raise ConfigurationError(
                f"tls {name!r}: {ca} holds no certificates: {_describe_ssl_error(error)}"
            ) from None
    else:
        made = httpx.create_ssl_context(trust_env=False)
    if client.is_file():
        _load_client_certificate(made, name, client, key)
    return made


def certificates_stamp(name: str | None, tls_dir: Path | None) -> tuple[int, ...]:
    """Changes when the files do, as they do when certificates are renewed."""
    if name is None or tls_dir is None:
        return ()
    files = [tls_dir / name / each for each in (CA_FILE, CLIENT_CERTIFICATE_FILE, CLIENT_KEY_FILE)]
    return tuple(file.stat().st_mtime_ns if file.is_file() else 0 for file in files)


def _certificates_folder(name: str, tls_dir: Path | None) -> Path:
    if tls_dir is None:
        raise ConfigurationError(f"tls {name!r}: set DIPOLE_TLS_DIR to the folder that holds {name}/{CA_FILE}")
    folder = tls_dir / name
    if not folder.is_dir():
        raise ConfigurationError(
            f"tls {name!r}: there is no folder {folder}: make it, with {CA_FILE} or {CLIENT_CERTIFICATE_FILE} in it"
        )
    return folder


def _load_client_certificate(made: ssl.SSLContext, name: str, client: Path, key: Path) -> None:
    def refuse_password() -> str:
        raise ConfigurationError(f"tls {name!r}: {key} is encrypted: store it without a password")

    try:
        made.load_cert_chain(client, key if key.is_file() else None, password=refuse_password)
    except (OSError, ssl.SSLError) as error:
        wanted = (
            f"do not belong together: {_describe_ssl_error(error)}"
            if key.is_file()
            else f"holds no key, and {key} is missing"
        )
        which = f"{client} and {CLIENT_KEY_FILE}" if key.is_file() else str(client)
        raise ConfigurationError(f"tls {name!r}: {which} {wanted}") from None


def _describe_ssl_error(error: Exception) -> str:
    return getattr(error, "reason", None) or getattr(error, "strerror", None) or type(error).__name__
