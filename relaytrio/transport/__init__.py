"""What a peer or a browser sees: the dialer, the parts endpoint, the ASGI app. Nothing is re-exported here."""
