"""The admission server: the agent into pods that ask for it, and broken documents refused.

``review``, ``patch``, ``pods`` and ``documents`` decide, without I/O; the others serve, and look
after the certificate.
"""
