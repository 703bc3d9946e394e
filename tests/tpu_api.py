"""A loopback server that speaks the TPU API and a machine's metadata, as TensorFlow asks for them.

Run as a script, it looks up TPUs with mesh/cloud.py and prints what came of each, as JSON: where
credentials come from is settled when Google's libraries are imported.
"""

import http.server
import json
import os
import re
import sys
import threading

NODES = {
    "ready": {"state": "READY", "health": "HEALTHY", "acceleratorType": "v3-8"},
    "creating": {"state": "CREATING", "acceleratorType": "v3-8"},
    "preempted": {"state": "PREEMPTED", "acceleratorType": "v3-8"},
    "sick": {"state": "READY", "health": "UNHEALTHY_MAINTENANCE", "acceleratorType": "v3-8"},
    "pod": {"state": "READY", "health": "HEALTHY", "acceleratorType": "v3-32"},
    "new": {"state": "READY", "health": "HEALTHY", "acceleratorType": "v5litepod-8"}}
ZONE, PROJECT, TOKEN = "europe-west4-a", "our-project", "a-token"
NODE = re.compile(r"/v1/projects/([^/]+)/locations/([^/]+)/nodes/([^/?]+)")


class Handler(http.server.BaseHTTPRequestHandler):
    """Answers for the metadata server, the API's description and its nodes."""

    def do_GET(self):
        address = f"http://{self.headers['Host']}/"
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
        if path == "/discovery":
            return self.answer(json.dumps(description(address)))
        if path == "/":
            return self.answer("computeMetadata/")
        project, zone, name = NODE.fullmatch(path).groups()
        if self.headers["Authorization"] != f"Bearer {TOKEN}":
            return self.answer("{}", 401)
        if project != PROJECT:
            return self.answer(json.dumps({"error": {"code": 403, "message": "denied"}}), 403)
        if zone != ZONE or name not in NODES:
            return self.answer(json.dumps({"error": {"code": 404, "message": "not found"}}), 404)
        return self.answer(json.dumps(NODES[name]))

    def answer(self, text, status=200):
        """Sends a text."""
        self.send_response(status)
        self.send_header("Metadata-Flavor", "Google")
        self.send_header("Content-Type", "application/json")
        self.end_headers()
        self.wfile.write(text.encode())

    def log_message(self, *args):
        """Says nothing."""


def description(address):
    """What Google's client library makes a client of the API of: projects.locations.nodes.get."""
    name = {"type": "string", "required": True, "location": "path",
            "pattern": "^projects/[^/]+/locations/[^/]+/nodes/[^/]+$"}
    get = {"id": "tpu.projects.locations.nodes.get", "path": "v1/{+name}", "httpMethod": "GET",
           "flatPath": "v1/{+name}", "parameters": {"name": name}, "parameterOrder": ["name"],
           "response": {"$ref": "Node"}}
    nodes = {"resources": {"nodes": {"methods": {"get": get}}}}
    return {"name": "tpu", "version": "v1", "rootUrl": address, "servicePath": "",
            "baseUrl": address, "batchPath": "batch", "protocol": "rest",
            "schemas": {"Node": {"id": "Node", "type": "object", "properties": {}}},
            "parameters": {}, "resources": {"projects": {"resources": {"locations": nodes}}}}


def start():
    """Starts the server; returns (itself, its host and port)."""
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    return server, f"127.0.0.1:{server.server_address[1]}"


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
