"""Certificates for tests, from an authority of their own, made by openssl."""
import subprocess


class AuthorityError(Exception):
    """openssl is missing or has failed."""


def openssl(folder, *arguments):
    try:
        done = subprocess.run(["openssl", *arguments], cwd=folder, capture_output=True, text=True, timeout=60, check=False)
    except OSError as error:
        raise AuthorityError(f"openssl, which makes the certificates, cannot be started ({error.strerror})") from None
    if done.returncode != 0:
        raise AuthorityError(f"openssl {arguments[0]}: {done.stderr.strip()}")


class Authority:
    """Signs certificates, as docs/transport.md tells an operator to."""

    new_key = ("req", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-noenc")

    def __init__(self, folder):
        self.folder = folder
        openssl(folder, *self.new_key, "-x509", "-days", "365", "-keyout", "ca-key.pem", "-out", "ca.pem",
                "-subj", "/CN=A test authority")
        (folder / "names").write_text("subjectAltName=DNS:localhost,IP:127.0.0.1\n")

    def sign(self, name):
        """Makes a key and a certificate, with the extensions of this server's names."""
        openssl(self.folder, *self.new_key, "-keyout", f"{name}-key.pem", "-out", "request.pem", "-subj", f"/CN={name}")
        openssl(self.folder, "x509", "-req", "-in", "request.pem", "-CA", "ca.pem", "-CAkey", "ca-key.pem", "-days", "90",
                "-extfile", "names", "-out", f"{name}.pem")
