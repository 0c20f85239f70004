"""Why a TLS connection to a job's endpoint did not come about, in words for a site's log."""

import socket
import ssl

REFUSALS = {
    "TLSV1_ALERT_UNKNOWN_CA": "it is of another federation",
    "SSLV3_ALERT_CERTIFICATE_EXPIRED": "it has expired",
    "SSLV3_ALERT_CERTIFICATE_REVOKED": "it was revoked",
    "SSLV3_ALERT_CERTIFICATE_UNKNOWN": "it is not accepted",
    "SSLV3_ALERT_BAD_CERTIFICATE": "it is not accepted",
    "SSLV3_ALERT_UNSUPPORTED_CERTIFICATE": "it is not accepted",
    "TLSV1_ALERT_DECRYPT_ERROR": "it is of another federation",
    "TLSV13_ALERT_CERTIFICATE_REQUIRED": "none was shown",
    "TLSV1_ALERT_ACCESS_DENIED": "it is not let in",
}
"""What a server's TLS alert says of our certificate."""


def explain(error: OSError) -> str:
    """Returns what an error while connecting, or on the connection, means."""
    match error:
        case ssl.SSLCertVerificationError():
            return f"the server shows a certificate that is not accepted: {error.verify_message}"
        case ssl.SSLError() if error.reason in REFUSALS:
            return (
                f"the server refuses this site's certificate: {REFUSALS[error.reason]} (TLS "
                f"alert {error.reason}); ask the federation's administrator for a new kit"
            )
        case ssl.SSLEOFError() | ConnectionResetError() | BrokenPipeError():
            return "the connection was closed: the job has no endpoint there (yet)"
        case ssl.SSLError():
            return f"TLS failed: {error.reason}"
        case ConnectionRefusedError():
            return "connections are refused: nothing listens there"
        case TimeoutError():
            return "no answer in time"
        case socket.gaierror():
            return f"the host name is not known here ({error.strerror})"
        case _:
            return str(error) or type(error).__name__
