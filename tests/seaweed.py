"""A real S3 server for the tests: SeaweedFS in a folder, which can be stopped and started again."""

import json
import os
import socket
import subprocess
import sys
import time
from pathlib import Path

import boto3
from botocore.client import Config
from botocore.exceptions import BotoCoreError, ClientError

KEY, SECRET = "lakekey", "lakesecret"
OTHER_KEY, OTHER_SECRET = "readonly", "readonlysecret"


class Seaweed:
    """`start`, `stop`, and the AWS environment that reaches it; data survives a stop."""

    def __init__(self, folder: Path, host: str = "127.0.0.1") -> None:
        self.folder, self.host = folder, host
        folder.mkdir(parents=True, exist_ok=True)
        # Each has a gRPC port 10000 above it.
        self.ports = _free_ports(4)
        self.endpoint = f"http://{host}:{self.ports[3]}"
        self.process: subprocess.Popen[bytes] | None = None
        identities = [
            {"name": "lake", "credentials": [{"accessKey": KEY, "secretKey": SECRET}], "actions": ["Admin"]},
            {
                "name": "other",
                "credentials": [{"accessKey": OTHER_KEY, "secretKey": OTHER_SECRET}],
                "actions": ["Read:public", "List:public"],
            },
            {"name": "anonymous", "actions": ["Read:open", "List:open"]},
        ]
        (folder / "s3.json").write_text(json.dumps({"identities": identities}))

    @property
    def environment(self) -> dict[str, str]:
        """The standard AWS environment of this server."""
        return {
            "AWS_ENDPOINT_URL": self.endpoint,
            "AWS_ACCESS_KEY_ID": KEY,
            "AWS_SECRET_ACCESS_KEY": SECRET,
            "AWS_REGION": "us-east-1",
            "AWS_EC2_METADATA_DISABLED": "true",
        }

    def start(self) -> None:
        master, volume, filer, s3 = self.ports
        command = [
            str(Path(sys.executable).with_name("weed")),
            "-logtostderr=true",
            "server",
            "-s3",
            f"-ip={self.host}",
            f"-ip.bind={self.host}",
            f"-dir={self.folder}",
            "-volume.max=5000",
            "-master.volumeSizeLimitMB=64",
            f"-master.port={master}",
            f"-volume.port={volume}",
            f"-filer.port={filer}",
            f"-s3.port={s3}",
            "-s3.port.iceberg=0",
            "-s3.port.lance=0",
            "-master.telemetry=false",
            # A master that was killed elects itself before it serves again; by default that takes 15 s.
            "-master.electionTimeout=1s",
            "-master.heartbeatInterval=200ms",
            f"-s3.config={self.folder / 's3.json'}",
        ]
        # It would take AWS credentials in its own environment for another identity.
        environment = {name: value for name, value in os.environ.items() if not name.startswith("AWS_")}
        # A bucket begins with seven volumes, so 29 buckets would fill a server of 200.
        environment["WEED_MASTER_VOLUME_GROWTH_COPY_1"] = "1"
        with (self.folder / "server.log").open("ab") as log:
            self.process = subprocess.Popen(command, stdout=log, stderr=log, env=environment, start_new_session=True)
        self._wait()

    def stop(self) -> None:
        """Take the server down at once, as a crash would: connections are refused from here on."""
        if self.process:
            self.process.kill()
            self.process.wait()
            self.process = None

    def client(self):  # type: ignore[no-untyped-def]
        """A client of its own, free of the code under test."""
        return boto3.client(
            "s3",
            endpoint_url=self.endpoint,
            aws_access_key_id=KEY,
            aws_secret_access_key=SECRET,
            region_name="us-east-1",
            config=Config(s3={"addressing_style": "path"}, retries={"total_max_attempts": 1}, read_timeout=10),
        )

    def _wait(self) -> None:
        """Until an object can be written: the S3 port answers some seconds before the volumes do."""
        deadline = time.monotonic() + 60
        client = self.client()
        while True:
            try:
                if not any(bucket["Name"] == "probe" for bucket in client.list_buckets()["Buckets"]):
                    client.create_bucket(Bucket="probe")
                client.put_object(Bucket="probe", Key="probe", Body=os.urandom(8))
                return
            except (BotoCoreError, ClientError):
                if time.monotonic() > deadline:
                    raise
                time.sleep(0.2)


def _free_ports(count: int) -> list[int]:
    ports: list[int] = []
    port = 20000 + os.getpid() % 1000 * 2
    while len(ports) < count:
        port += 1
        if all(_is_free(number) for number in (port, port + 10000)):
            ports.append(port)
    return ports


def _is_free(port: int) -> bool:
    with socket.socket() as probe:
        try:
            probe.bind(("127.0.0.1", port))
        except OSError:
            return False
    return True
