"""A loopback server that speaks the TPU API and a machine's metadata, as TensorFlow asks for them.

It answers to what Google's own description of the API says, which the client library brings along.
Run as a script, it looks up TPUs with mesh/cloud.py and prints what came of each, as JSON: where
credentials come from is settled when Google's libraries are imported.
"""

import copy
import http.server
import json
import os
import re
import sys
import threading
from urllib.parse import parse_qs, urlsplit

from googleapiclient import discovery_cache

READY = {"state": "READY", "health": "HEALTHY",
         "networkEndpoints": [{"ipAddress": "192.0.2.1", "port": 8470}]}
NODES = {
    "ready": {**READY, "acceleratorType": "v3-8"},
    "pod": {**READY, "acceleratorType": "v3-32"},
    "new": {**READY, "acceleratorType": "v5litepod-8"}}
# A TPU as somebody has made it: what making it anew must not lose.
SPECIAL = {
    "acceleratorType": "v3-8", "runtimeVersion": "tpu-vm-tf-2.15.1-se",
    "schedulingConfig": {"preemptible": True}, "labels": {"whose": "ours"},
    "networkConfig": {"network": "projects/p/global/networks/n", "enableExternalIps": False},
    "serviceAccount": {"email": "tpu@our-project.iam.gserviceaccount.com"}, "tags": ["fenced"]}
ZONE, PROJECT, TOKEN = "europe-west4-a", "our-project", "a-token"
PATH = re.compile(r"/v[12]/projects/([^/]+)/locations/([^/]+)/(nodes|operations)/?([^/]*)")


def description(version, address=""):
    """Google's own description of a version of the API, for a server at `address`."""
    path = os.path.join(os.path.dirname(discovery_cache.__file__), "documents",
                        f"tpu.{version}.json")
    with open(path, encoding="utf-8") as file:
        found = json.load(file)
    del found["mtlsRootUrl"]
    return {**found, "rootUrl": address, "baseUrl": address}


class World:
    """The TPUs of one zone and project.

    Attributes:
      nodes: {name: what the API says of a TPU}. Under "then" is a list of what becomes of it, one
        with each look: keys that change, or None if it goes away.
      changes: what clients have asked for: ("delete" or "create", name, body).
      shortages: how often making one fails for want of TPUs.
      outages: how many requests fail with status 503.
    """

    def __init__(self, **nodes):
        self.nodes = copy.deepcopy({**NODES, **nodes})
        self.changes, self.operations = [], {}
        self.shortages = self.outages = 0
        self.schemas = description("v2")["schemas"]

    def look(self, name):
        """What the API says of a TPU now, or None."""
        node = self.nodes.get(name)
        if node and node.get("then"):
            change = node["then"].pop(0)
            if change is None:
                left = node["then"]
                if left:
                    self.nodes[name] = {"absent": True, "then": left}
                else:
                    del self.nodes[name]
                return None
            node.pop("absent", None)
            node.update(change)
        if node is None or node.get("absent"):
            return None
        return {key: value for key, value in node.items() if key != "then"}

    def delete(self, name):
        """Begins to delete a TPU; returns (status, answer)."""
        self.changes.append(("delete", name, None))
        self.nodes[name] = {**self.nodes[name], "state": "DELETING", "then": [{}, None]}
        return 200, self._operation(done=False)

    def create(self, name, body):
        """Begins to make a TPU; returns (status, answer)."""
        self.changes.append(("create", name, body))
        wrong = self._wrong(body, "Node")
        if wrong or not {"acceleratorType", "runtimeVersion"} <= body.keys():
            return 400, {"error": {"code": 400, "message": f"bad field: {wrong}"}}
        if name in self.nodes:
            return 409, {"error": {"code": 409, "message": "there is one"}}
        if self.shortages:
            self.shortages -= 1
            return 200, self._operation(done=True, error={
                "code": 8, "message": "There is no more capacity in the zone"})
        self.nodes[name] = {**body, "state": "CREATING",
                            "acceleratorConfig": {"type": "V3", "topology": "2x2"},
                            "then": [{}, {}, READY]}
        return 200, self._operation(done=False)

    def _operation(self, **facts):
        name = f"projects/{PROJECT}/locations/{ZONE}/operations/{len(self.operations)}"
        self.operations[name] = {"name": name, **facts}
        return self.operations[name]

    def _wrong(self, body, schema):
        """The first field that Google's description does not let a client set, or None."""
        fields = self.schemas[schema]["properties"]
        for key, value in body.items():
            if key not in fields or fields[key].get("readOnly"):
                return key
            if "$ref" in fields[key] and (below := self._wrong(value, fields[key]["$ref"])):
                return f"{key}.{below}"
        return None


class Handler(http.server.BaseHTTPRequestHandler):
    """Answers for the metadata server, the API's description, its nodes and operations."""

    def do_GET(self):
        path = self.path.partition("?")[0]
        if path.startswith("/computeMetadata/v1/"):
            assert path.endswith("/") or self.headers["Metadata-Flavor"] == "Google"
            known = {"project/project-id": PROJECT,
                     "instance/zone": f"projects/1/zones/{ZONE}"}
            asked = path.removeprefix("/computeMetadata/v1/")
            if asked.endswith("/token"):
                return self.answer(json.dumps({"access_token": TOKEN, "expires_in": 3600}))
            account = json.dumps({"email": "default", "scopes": []})
            return self.answer(known.get(asked, account))
        if path.startswith("/discovery/"):
            return self.answer(json.dumps(description(
                path.removeprefix("/discovery/"), f"http://{self.headers['Host']}/")))
        if path == "/":
            return self.answer("computeMetadata/")
        return self.about_tpus("GET")

    def do_POST(self):
        self.about_tpus("POST")

    def do_DELETE(self):
        self.about_tpus("DELETE")

    def about_tpus(self, method):
        """Answers what is asked of TPUs."""
        world, asked = self.server.world, urlsplit(self.path)
        project, zone, collection, name = PATH.fullmatch(asked.path).groups()
        length = int(self.headers["Content-Length"] or 0)
        body = json.loads(self.rfile.read(length) or "null")
        if self.headers["Authorization"] != f"Bearer {TOKEN}":
            return self.answer("{}", 401)
        if world.outages:
            world.outages -= 1
            return self.answer(json.dumps({"error": {"code": 503, "message": "later"}}), 503)
        if project != PROJECT:
            return self.answer(json.dumps({"error": {"code": 403, "message": "denied"}}), 403)
        if method == "POST":
            status, found = world.create(parse_qs(asked.query)["nodeId"][0], body)
            return self.answer(json.dumps(found), status)
        if collection == "operations":
            found = world.operations[asked.path.partition("/v2/")[2]]
        else:
            found = world.look(name) if zone == ZONE else None
        if found is None:
            return self.answer(json.dumps({"error": {"code": 404, "message": "not found"}}), 404)
        if method == "DELETE":
            found = world.delete(name)[1]
        return self.answer(json.dumps(found))

    def answer(self, text, status=200):
        """Sends a text."""
        self.send_response(status)
        self.send_header("Metadata-Flavor", "Google")
        self.send_header("Content-Type", "application/json")
        self.end_headers()
        self.wfile.write(text.encode())

    def log_message(self, *args):
        """Says nothing."""


def start(**nodes):
    """Starts the server of a World; returns (itself, its host and port)."""
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.world = World(**nodes)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    return server, f"127.0.0.1:{server.server_address[1]}"


def environment(address):
    """Where Google's libraries look, if the server is at `address`."""
    return {"TPU_API_DISCOVERY_URL": f"http://{address}/discovery/{{apiVersion}}",
            "GCE_METADATA_IP": address, "GCE_METADATA_HOST": address, "GCE_METADATA_ROOT": address}


def main(requests):
    """Prints what mesh.cloud.find says of each request: [name, zone, project, mesh size]."""
    from configs.errors import UserError
    from mesh import cloud

    for request in requests:
        try:
            print(json.dumps(str(cloud.find(*request))))
        except UserError as error:
            print(json.dumps(str(error)))


if __name__ == "__main__":
    sys.path.insert(0, os.path.dirname(os.path.dirname(os.path.abspath(__file__))))
    main(json.loads(sys.argv[1]))
