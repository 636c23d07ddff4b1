import json
import os
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sidecar.artifacts.remote.secrets import ENVIRONMENT, SETTINGS, Credentials, read_credentials
from sidecar.errors import AccessDenied

KEYS = {"AWS_ACCESS_KEY_ID": "AKIAEXAMPLE", "AWS_SECRET_ACCESS_KEY": "secret-of-team-a"}


def mount(root: Path, name: str, files: dict[str, str]) -> Path:
    """Lay a Secret down as the kubelet does: a new directory, then the link swapped to it."""
    directory = root / name
    directory.mkdir(exist_ok=True, parents=True)
    number = len(list(directory.glob("..2*")))
    side = directory / f"..2026_{number}"
    side.mkdir()
    for key, value in files.items():
        (side / key).write_text(value)
    link = directory / "..data_tmp"
    link.symlink_to(side.name)
    link.rename(directory / "..data")
    for key in files:
        if not (directory / key).is_symlink():
            (directory / key).symlink_to(f"..data/{key}")
    return directory


def read(root: Path, name: str | None = "team-a", **environment: str) -> Credentials:
    return read_credentials(name, root=root, environment=environment)


def test_without_a_name_it_is_the_environment(tmp_path):
    found = read(tmp_path, None, **KEYS, AWS_SESSION_TOKEN="", HF_ENDPOINT="https://hub")
    assert dict(found.values) == {**KEYS, "HF_ENDPOINT": "https://hub"}
    assert (found.where, found.is_mounted, found.directory) == (ENVIRONMENT, False, None)


def test_each_key_of_a_mounted_secret_is_a_value(tmp_path):
    directory = mount(tmp_path, "team-a", {**KEYS, "ca.crt": "-----BEGIN", "username": "ann"})
    found = read(tmp_path)
    assert dict(found.values) == {**KEYS, "ca.crt": "-----BEGIN", "username": "ann"}
    assert (found.where, found.is_mounted) == ("mounted secret `team-a`", True)
    assert found.directory == directory


def test_a_plain_directory_of_files_is_as_good(tmp_path):
    (tmp_path / "team-a").mkdir()
    for key, value in KEYS.items():
        (tmp_path / "team-a" / key).write_text(value)
    assert dict(read(tmp_path).values) == KEYS


def test_a_newline_at_the_end_is_not_part_of_a_key(tmp_path):
    mount(tmp_path, "team-a", {name: f"{value}\n" for name, value in KEYS.items()})
    assert dict(read(tmp_path).values) == KEYS


def test_a_rotated_secret_is_read_again(tmp_path):
    mount(tmp_path, "team-a", KEYS)
    assert read(tmp_path).values["AWS_SECRET_ACCESS_KEY"] == "secret-of-team-a"
    mount(tmp_path, "team-a", {**KEYS, "AWS_SECRET_ACCESS_KEY": "rotated"})
    assert read(tmp_path).values["AWS_SECRET_ACCESS_KEY"] == "rotated"


def test_what_is_no_text_or_no_file_is_passed_over(tmp_path):
    directory = mount(tmp_path, "team-a", KEYS)
    (directory / "..data" / "store.jks").write_bytes(b"\xff\xfe\x00")
    (directory / "..data" / "folder").mkdir()
    (directory / "..data" / "huge").write_bytes(b"x" * ((1 << 20) + 1))
    assert dict(read(tmp_path).values) == KEYS


@pytest.mark.parametrize(
    ("given", "name"),
    [
        ("awsAccessKeyID", "AWS_ACCESS_KEY_ID"),
        ("awsSecretAccessKey", "AWS_SECRET_ACCESS_KEY"),
        ("accesskey", "AWS_ACCESS_KEY_ID"),
        ("secretkey", "AWS_SECRET_ACCESS_KEY"),
        ("rootUser", "AWS_ACCESS_KEY_ID"),
        ("rootPassword", "AWS_SECRET_ACCESS_KEY"),
        ("awsAnonymousCredential", "AWS_SKIP_SIGNATURE"),
        ("AWS_NO_SIGN_REQUEST", "AWS_SKIP_SIGNATURE"),
        ("AWS_S3_ENDPOINT", "AWS_ENDPOINT_URL"),
        ("AZ_CLIENT_ID", "AZURE_CLIENT_ID"),
        ("AZ_CLIENT_SECRET", "AZURE_CLIENT_SECRET"),
        ("AZ_TENANT_ID", "AZURE_TENANT_ID"),
        ("AZURE_STORAGE_ACCESS_KEY", "AZURE_STORAGE_ACCOUNT_KEY"),
        ("AZURE_STORAGE_KEY", "AZURE_STORAGE_ACCOUNT_KEY"),
        ("AZURE_STORAGE_ACCOUNT", "AZURE_STORAGE_ACCOUNT_NAME"),
        ("azurestorageaccountname", "AZURE_STORAGE_ACCOUNT_NAME"),
        ("azurestorageaccountkey", "AZURE_STORAGE_ACCOUNT_KEY"),
        ("AZURE_STORAGE_SAS_KEY", "AZURE_STORAGE_SAS_TOKEN"),
        ("HUGGING_FACE_HUB_TOKEN", "HF_TOKEN"),
        ("token", "HF_TOKEN"),
    ],
)
def test_other_names_in_use_mean_the_same(tmp_path, given, name):
    mount(tmp_path, "team-a", {given: "value"})
    found = read(tmp_path)
    assert found.values[name] == found.values[given] == "value"


def test_the_proper_name_wins_over_another(tmp_path):
    mount(tmp_path, "team-a", {"accesskey": "minio", **KEYS})
    assert read(tmp_path).values["AWS_ACCESS_KEY_ID"] == "AKIAEXAMPLE"


def test_words_that_mean_a_key_in_a_secret_mean_nothing_in_an_environment(tmp_path):
    found = read(tmp_path, None, token="of something else", rootPassword="x")
    assert set(found.values) == {"token", "rootPassword"}


def test_a_mounted_secret_never_takes_an_identity_from_the_environment(tmp_path):
    mount(tmp_path, "team-a", {"AWS_ACCESS_KEY_ID": "AKIAEXAMPLE"})
    found = read(
        tmp_path,
        AWS_SECRET_ACCESS_KEY="of the process",
        AWS_SESSION_TOKEN="of the process",
        AWS_PROFILE="of the process",
        AWS_ROLE_ARN="of the process",
        AWS_WEB_IDENTITY_TOKEN_FILE="/var/run/token",
        AWS_CONTAINER_CREDENTIALS_FULL_URI="http://127.0.0.1/",
        AWS_SHARED_CREDENTIALS_FILE="/root/.aws/credentials",
        GOOGLE_APPLICATION_CREDENTIALS="/key.json",
        AZURE_STORAGE_ACCOUNT_NAME="process",
        AZURE_STORAGE_ACCOUNT_KEY="of the process",
        AZURE_STORAGE_ENDPOINT="https://process.blob.core.windows.net",
        HF_TOKEN="of the process",
        HOME="/root",
    )
    assert dict(found.values) == {"AWS_ACCESS_KEY_ID": "AKIAEXAMPLE"}


def test_a_mounted_secret_takes_settings_from_the_environment(tmp_path):
    mount(tmp_path, "team-a", KEYS)
    settings = {
        "AWS_ENDPOINT_URL": "http://minio:9000",
        "AWS_DEFAULT_REGION": "eu-west-1",
        "https_proxy": "http://proxy:3128",
        "AWS_CA_BUNDLE": "/etc/ca.pem",
    }
    assert dict(read(tmp_path, **settings).values) == {**KEYS, **settings}


@pytest.mark.parametrize("name", ["HF_HUB_OFFLINE", "TRANSFORMERS_OFFLINE"])
def test_a_mounted_secret_has_no_say_in_being_offline(tmp_path, name):
    for number, value in enumerate("01"):
        mount(tmp_path, f"team-{number}", {**KEYS, name: value})
        assert dict(read(tmp_path, f"team-{number}").values) == KEYS
        found = read(tmp_path, f"team-{number}", **{name: "1"})
        assert dict(found.values) == {**KEYS, name: "1"}


@pytest.mark.parametrize("group", [one for one in SETTINGS if len(one) > 1])
def test_a_setting_of_a_secret_stands_for_all_its_names(tmp_path, group):
    for index, name in enumerate(group):
        mount(tmp_path, f"team-{index}", {name: "of the secret"})
        environment = dict.fromkeys(group, "of the environment")
        found = read_credentials(f"team-{index}", root=tmp_path, environment=environment)
        assert dict(found.values) == {name: "of the secret"}


def test_a_credentials_file_in_a_secret_is_found(tmp_path):
    directory = mount(tmp_path, "aws-credentials", {"credentials": "[default]\n"})
    found = read(tmp_path, "aws-credentials")
    assert found.values["AWS_SHARED_CREDENTIALS_FILE"] == str(directory / "credentials")


def test_a_file_of_endless_depth_is_no_google_key(tmp_path):
    mount(tmp_path, "team-a", {"key.json": "[" * 100_000})
    assert "GOOGLE_APPLICATION_CREDENTIALS" not in read(tmp_path).values


@pytest.mark.parametrize("name", ["gcloud-application-credentials.json", "key.json"])
def test_a_google_key_in_a_secret_is_found(tmp_path, name):
    key = json.dumps({"type": "service_account"})
    directory = mount(tmp_path, "team-a", {"config.json": "{}", "a.json": "no json", name: key})
    assert read(tmp_path).values["GOOGLE_APPLICATION_CREDENTIALS"] == str(directory / name)


def test_a_value_may_be_the_name_of_another_key_or_the_content_itself(tmp_path):
    key = json.dumps({"type": "service_account"})
    directory = mount(
        tmp_path,
        "team-a",
        {
            "GOOGLE_APPLICATION_CREDENTIALS": key,
            "AWS_WEB_IDENTITY_TOKEN_FILE": "jwt",
            "jwt": "ey...",
            "AWS_CA_BUNDLE": str(tmp_path / "team-a" / "bundle"),
            "bundle": "-----BEGIN CERTIFICATE-----",
        },
    )
    values = read(tmp_path).values
    assert values["GOOGLE_APPLICATION_CREDENTIALS"] == str(
        directory / "GOOGLE_APPLICATION_CREDENTIALS"
    )
    assert values["AWS_WEB_IDENTITY_TOKEN_FILE"] == str(directory / "jwt")
    assert values["AWS_CA_BUNDLE"] == str(directory / "bundle")


@pytest.mark.parametrize("path", ["../team-b/token", "/etc/passwd", "missing", "."])
def test_a_secret_names_no_file_but_its_own(tmp_path, path):
    mount(tmp_path, "team-b", {"token": "of team b"})
    mount(tmp_path, "team-a", {"AWS_WEB_IDENTITY_TOKEN_FILE": path})
    with pytest.raises(AccessDenied, match="AWS_WEB_IDENTITY_TOKEN_FILE names no file in"):
        read(tmp_path)


def test_a_secret_that_is_not_mounted_says_what_to_mount_where(tmp_path):
    with pytest.raises(AccessDenied) as caught:
        read(tmp_path, "team-z")
    assert str(tmp_path / "team-z") in str(caught.value)
    assert "mounted secret `team-z`" in str(caught.value)


@pytest.mark.parametrize("name", ["", ".", "..", "../team-a", "a/b", "/etc", "a\0b"])
def test_a_name_that_leads_elsewhere_is_refused(tmp_path, name):
    mount(tmp_path, "team-a", KEYS)
    with pytest.raises(AccessDenied, match="no name of a mounted secret"):
        read(tmp_path / "below", name)


def test_a_file_that_cannot_be_read_is_named(tmp_path):
    if os.geteuid() == 0:
        # Root reads everything; a loop of links cannot be read by anybody.
        (tmp_path / "team-a").symlink_to("team-a")
    else:
        mount(tmp_path, "team-a", KEYS)
        (tmp_path / "team-a" / "..data" / "AWS_ACCESS_KEY_ID").chmod(0)
    with pytest.raises(AccessDenied, match="mounted secret `team-a`"):
        read(tmp_path)


# The first sign is in no sentence of ours.
secrets = st.text(st.characters(codec="utf-8"), min_size=6, max_size=400).map("§{}".format)


@given(
    values=st.dictionaries(
        st.sampled_from(["AWS_SECRET_ACCESS_KEY", "HF_TOKEN", "password", "AZURE_CLIENT_SECRET"]),
        secrets,
    )
)
def test_no_representation_shows_a_value(values):
    found = read_credentials(None, root=Path("/nowhere"), environment=values)
    assert "§" not in f"{found} {found!r} {found.values} {found.values!r} {(found,)!r}"
    plain = replace(found, values=values)
    assert "§" not in f"{plain} {plain!r}"


@given(secret=secrets)
def test_no_error_shows_a_value(tmp_path_factory, secret):
    root = tmp_path_factory.mktemp("secrets")
    mount(root, "team-a", {"GOOGLE_APPLICATION_CREDENTIALS": secret, "key.json": secret})
    with pytest.raises(AccessDenied) as caught:
        read(root)
    assert "§" not in str(caught.value)
