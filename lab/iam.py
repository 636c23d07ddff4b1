"""Who may read from the lab's S3: users, roles, and temporary keys for a workload's token."""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from pathlib import Path
from urllib.parse import urlencode

from lab import LabError
from lab.sigv4 import Keys, send_signed
from lab.tokens import AUDIENCE, Issuer
from lab.web import Answer, send

READ_ACTIONS = ["s3:GetObject", "s3:ListBucket"]
FORM = {"Content-Type": "application/x-www-form-urlencoded"}


def read_policy(buckets: Sequence[str], *, principal: str | None = None) -> str:
    """A policy that lets its holder, or `principal`, list and read these buckets."""
    names = [f"arn:aws:s3:::{bucket}" for bucket in buckets]
    statement: dict[str, object] = {
        "Effect": "Allow",
        "Action": READ_ACTIONS,
        "Resource": [*names, *(f"{name}/*" for name in names)],
    }
    if principal is not None:
        statement["Principal"] = principal
    return json.dumps({"Version": "2012-10-17", "Statement": [statement]})


def _field(answer: Answer, name: str) -> str:
    found = re.search(f"<{name}>([^<]*)</{name}>", answer.text)
    if found is None:
        raise LabError(f"IAM's answer has no {name}: {answer.text}")
    return found[1]


class Iam:
    """Client of the IAM and the STS of a server."""

    def __init__(self, url: str, root: Keys, region: str, authority: Path | None) -> None:
        self.url = url
        self._root = root
        self._region = region
        self._authority = authority

    def _ask(self, action: str, **parameters: str) -> Answer:
        body = urlencode({"Action": action, "Version": "2010-05-08", **parameters}).encode()
        answer = send_signed(
            "POST",
            f"{self.url}/",
            self._root,
            region=self._region,
            service="iam",
            body=body,
            headers=FORM,
            authority=self._authority,
        )
        if answer.status != 200:
            raise LabError(f"IAM answered {answer.status} to {action}: {answer.text}")
        return answer

    def make_user(self, name: str, buckets: Sequence[str]) -> Keys:
        """Keys of a new user, who may list and read these buckets."""
        self._ask("CreateUser", UserName=name)
        policy = read_policy(buckets)
        self._ask("PutUserPolicy", UserName=name, PolicyName="read", PolicyDocument=policy)
        return self.make_key(name)

    def make_key(self, user: str) -> Keys:
        """One more pair of keys of a user."""
        made = self._ask("CreateAccessKey", UserName=user)
        return Keys(
            access_key=_field(made, "AccessKeyId"), secret_key=_field(made, "SecretAccessKey")
        )

    def delete_key(self, user: str, keys: Keys) -> None:
        """Take a pair of keys away, as a rotation does."""
        self._ask("DeleteAccessKey", UserName=user, AccessKeyId=keys.access_key)

    def make_role(self, name: str, buckets: Sequence[str], issuer: Issuer, subject: str) -> str:
        """A role that lists and reads these buckets, for one subject of an issuer; its ARN."""
        trust = {
            "Effect": "Allow",
            "Principal": {"Federated": self._trust(issuer)},
            "Action": "sts:AssumeRoleWithWebIdentity",
            "Condition": {
                "StringEquals": {
                    f"{issuer.name}:aud": AUDIENCE,
                    f"{issuer.name}:sub": subject,
                }
            },
        }
        document = json.dumps({"Version": "2012-10-17", "Statement": [trust]})
        role = self._ask("CreateRole", RoleName=name, AssumeRolePolicyDocument=document)
        policy = read_policy(buckets)
        self._ask("PutRolePolicy", RoleName=name, PolicyName="read", PolicyDocument=policy)
        return _field(role, "Arn")

    def _trust(self, issuer: Issuer) -> str:
        known = self._ask("ListOpenIDConnectProviders").text
        found = re.search(f"<Arn>([^<]*oidc-provider/{re.escape(issuer.name)})</Arn>", known)
        if found is not None:
            return found[1]
        made = self._ask(
            "CreateOpenIDConnectProvider",
            Url=issuer.url,
            **{"ClientIDList.member.1": AUDIENCE, "ThumbprintList.member.1": issuer.thumbprint},
        )
        return _field(made, "OpenIDConnectProviderArn")

    def take_role(self, role: str, token: str) -> Keys:
        """Temporary keys of a role, for a workload's token; a LabError when it is refused."""
        asked = {
            "Action": "AssumeRoleWithWebIdentity",
            "Version": "2011-06-15",
            "RoleArn": role,
            "RoleSessionName": "lab",
            "WebIdentityToken": token,
        }
        body = urlencode(asked).encode()
        answer = send("POST", f"{self.url}/", body=body, headers=FORM, authority=self._authority)
        if answer.status != 200:
            raise LabError(f"STS answered {answer.status}: {answer.text}")
        return Keys(
            access_key=_field(answer, "AccessKeyId"),
            secret_key=_field(answer, "SecretAccessKey"),
            session_token=_field(answer, "SessionToken"),
        )
