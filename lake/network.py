"""How to reach an endpoint: through which proxy, and trusting which certificate authorities.

boto3, pyarrow and deltalake each read other variables by other rules. They are read here once, by botocore's rules, and
handed to all three.
"""

import os
import ssl
from typing import NamedTuple
from urllib.parse import urlsplit

from lake.errors import Refused

_CA_VARIABLES = ("AWS_CA_BUNDLE", "REQUESTS_CA_BUNDLE", "SSL_CERT_FILE")
# deltalake takes certificates only along with a proxy; one that every host bypasses is never asked.
_NO_PROXY = {"proxy_url": "http://127.0.0.1:9", "proxy_excludes": "*,0.0.0.0/0,::/0"}


class Route(NamedTuple):
    """The uri of a proxy (None: no proxy) and a PEM file of certificate authorities (None: those of each client)."""

    proxy: str | None
    ca_file: str | None

    def delta_options(self) -> dict[str, str]:
        """Return deltalake's ``storage_options`` for this route."""
        options = {"proxy_url": self.proxy} if self.proxy else dict(_NO_PROXY)
        if self.ca_file:
            with open(self.ca_file, encoding="utf-8", errors="replace") as file:
                options["proxy_ca_certificate"] = file.read()
        return options


def variables() -> dict[str, str]:
    """Return the environment variables that decide a route."""
    return {
        name: value
        for name, value in os.environ.items()
        if name in _CA_VARIABLES or name.lower() in ("http_proxy", "https_proxy", "no_proxy")
    }


def route(endpoint: str, profile_ca: str | None) -> Route:
    """Find the route to an endpoint from the environment; `profile_ca` is the ``ca_bundle`` of the AWS profile.

    Raises ``Refused`` for a file of certificates that cannot be used.
    """
    from botocore.utils import get_environ_proxies

    scheme = urlsplit(endpoint).scheme
    proxy = get_environ_proxies(endpoint).get(scheme) or None
    if proxy and "://" not in proxy:
        proxy = f"http://{proxy}"
    named = [("ca_bundle of the AWS profile", profile_ca), *((name, os.environ.get(name)) for name in _CA_VARIABLES)]
    for name, path in named:
        if path and scheme == "https":
            return Route(proxy, _checked(name, path))
    return Route(proxy, None)


def _checked(name: str, path: str) -> str:
    try:
        ssl.create_default_context(cafile=path)
    except (OSError, ssl.SSLError) as error:
        reason = error.strerror if not isinstance(error, ssl.SSLError) else "it holds no certificate"
        raise Refused(
            f"{name} names {path!r}, which cannot be used: {reason}: name a PEM file of certificates"
        ) from None
    return path
