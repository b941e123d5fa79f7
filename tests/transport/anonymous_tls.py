"""TLS without certificates: enough to see that what is sent is encrypted, and no key to keep."""

from __future__ import annotations

import ssl


def anonymous_tls(side: int) -> ssl.SSLContext:
    """One side's context: `ssl.PROTOCOL_TLS_SERVER` or `ssl.PROTOCOL_TLS_CLIENT`."""
    context = ssl.SSLContext(side)
    context.check_hostname = False
    context.verify_mode = ssl.CERT_NONE
    context.maximum_version = ssl.TLSVersion.TLSv1_2
    context.set_ciphers("AECDH:@SECLEVEL=0")
    return context
