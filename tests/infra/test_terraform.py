"""The fixed resources of a cluster on AWS: created and destroyed by terraform, against moto."""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

import boto3
import pytest

from tests.ec2 import REGION, moto
from tests.infra.tools import INFRA

# Providers on machines without Internet access.
MIRRORS = sorted(path.parent for path in Path("/opt").glob("*/registry.terraform.io"))
pytestmark = pytest.mark.skipif(not shutil.which("terraform"), reason="no terraform here, which Debian does not have")

VARIABLES = {
    "region": REGION,
    "zones": f'["{REGION}a", "{REGION}b"]',
    "admin_addresses": '["198.51.100.0/24"]',
    "bucket": "drivetrain-test",
    "deletion_protection": "false",
}
OVERRIDE = """
provider "aws" {
  s3_use_path_style = true # buckets have no host names here
}
resource "aws_efs_file_system" "this" {
  lifecycle {
    prevent_destroy = false
  }
}
"""


class Terraform:
    """Our files in a separate folder, and the cloud to which they are applied."""

    def __init__(self, folder: Path, uri: str) -> None:
        self.folder = shutil.copytree(INFRA / "terraform" / "aws", folder / "aws")
        (self.folder / "test_override.tf").write_text(OVERRIDE)
        keys = {"AWS_ACCESS_KEY_ID": "test", "AWS_SECRET_ACCESS_KEY": "test", "TF_IN_AUTOMATION": "1"}
        self._environment = {**os.environ, **keys, "AWS_ENDPOINT_URL": uri}

    def __call__(self, *words: str, variables: dict[str, str] | None = None) -> str:
        given = [f"-var={name}={value}" for name, value in (variables or {}).items()]
        done = subprocess.run(
            ["terraform", *words, *given],
            cwd=self.folder,
            env=self._environment,
            capture_output=True,
            text=True,
            check=False,
        )
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout


@pytest.fixture(scope="module")
def terraform(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Terraform]:
    with moto("127.0.0.1") as uri:
        made = Terraform(tmp_path_factory.mktemp("terraform"), uri)
        made("init", "-input=false", *(f"-plugin-dir={mirror}" for mirror in MIRRORS))
        yield made


def test_files_are_formatted_and_valid(terraform: Terraform) -> None:
    terraform("fmt", "-check", "-recursive", str(INFRA / "terraform"))
    terraform("validate")


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_created_and_destroyed(terraform: Terraform) -> None:
    terraform("apply", "-auto-approve", variables=VARIABLES)
    outputs = terraform("output")
    for name in ("subnet_id", "security_group_id", "head_profile_arn", "node_profile_arn", "file_system_address"):
        assert f"{name} = " in outputs
    uri = terraform._environment["AWS_ENDPOINT_URL"]
    ec2 = boto3.client("ec2", REGION, endpoint_url=uri, aws_access_key_id="test", aws_secret_access_key="test")
    groups = ec2.describe_security_groups(Filters=[{"Name": "group-name", "Values": ["drivetrain-*"]}])[
        "SecurityGroups"
    ]
    assert len(groups) == 2
    rules = [rule for group in groups for rule in group["IpPermissions"]]
    assert "0.0.0.0/0" not in {block["CidrIp"] for rule in rules for block in rule["IpRanges"]}
    terraform("destroy", "-auto-approve", variables=VARIABLES)
    assert terraform("state", "list") == ""


@pytest.mark.parametrize(
    ("name", "value", "said"),
    [("admin_addresses", '["0.0.0.0/0"]', "is the whole Internet"), ("zones", '["us-east-1a"]', "Give two zones")],
)
def test_wrong_variables_are_reported(terraform: Terraform, name: str, value: str, said: str) -> None:
    with pytest.raises(AssertionError, match=said):
        terraform("plan", variables={**VARIABLES, name: value})
