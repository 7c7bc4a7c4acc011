"""A root and two certificates for the works that speak mTLS, made by openssl.

It starts nothing that is measured.
"""

import subprocess
from pathlib import Path

from processes import Failed

# P-256, as the mesh's own CA makes them: the key decides what a handshake costs.
KEY = ["-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes"]
# A run takes minutes.
DAYS = "2"


def make(directory):
    """Writes root.pem, and NAME.pem, NAME.key and NAME.both.pem (HAProxy's form) of the two workloads."""
    folder = Path(directory)
    constraints = "basicConstraints=critical,CA:TRUE"
    root = ["req", "-x509", *KEY, "-days", DAYS, "-subj", "/CN=bench root", "-addext", constraints]
    openssl(root + ["-keyout", folder / "root.key", "-out", folder / "root.pem"])
    for name in ("caller", "bench"):
        leaf(folder, name)


def leaf(folder, name):
    certificate, key, both = folder / f"{name}.pem", folder / f"{name}.key", folder / f"{name}.both.pem"
    request, extensions = folder / f"{name}.csr", folder / f"{name}.ext"
    # The URI is what sidecars look at, the DNS name what HAProxy does.
    extensions.write_text(
        f"subjectAltName=URI:spiffe://bench/{name},DNS:{name}\nbasicConstraints=critical,CA:FALSE\n"
        "keyUsage=critical,digitalSignature\nextendedKeyUsage=serverAuth,clientAuth\n"
    )
    openssl(["req", *KEY, "-subj", f"/CN={name}", "-keyout", key, "-out", request])
    signer = ["-CA", folder / "root.pem", "-CAkey", folder / "root.key", "-CAcreateserial"]
    openssl(["x509", "-req", "-in", request, *signer, "-days", DAYS, "-extfile", extensions, "-out", certificate])
    both.write_text(certificate.read_text() + key.read_text())


def openssl(words):
    done = subprocess.run(["openssl", *map(str, words)], capture_output=True, text=True, timeout=30)
    if done.returncode:
        raise Failed(f"openssl {words[0]} failed: {done.stderr.strip()[-300:]}")
