"""Settings: one frozen object, read once when a process starts and passed down from there.

This is the only module that reads or writes the process environment. The order of authority is:
command-line option, environment variable, `.env`, `langgraph.json` (its `env` entry), default.
Where LangGraph's own server has a name for a setting, that name works too.
"""

import os
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal, cast
from urllib.parse import urlsplit

import orjson
from dotenv import dotenv_values
from pydantic import AliasChoices, BeforeValidator, Field, SecretStr, field_validator
from pydantic_settings import BaseSettings, SettingsConfigDict

MODEL_KEYS = (
    "OPENAI_API_KEY",
    "ANTHROPIC_API_KEY",
    "GOOGLE_API_KEY",
    "GEMINI_API_KEY",
    "AZURE_OPENAI_API_KEY",
    "MISTRAL_API_KEY",
    "GROQ_API_KEY",
    "DEEPSEEK_API_KEY",
    "OPENROUTER_API_KEY",
    "XAI_API_KEY",
)
"""A process that has one of these talks to a real model; without any, the simulator answers."""

_INHERITED = ("PATH", "HOME", "USER", "LANG", "TMPDIR", "VIRTUAL_ENV", "LD_LIBRARY_PATH", "DYLD_LIBRARY_PATH")
_TRACE_NAMES = {"trace_id", "run_id", "thread_id"}
_TEMPLATE = re.compile(r"\$\{\{\s*env\.(\w+)\s*\}\}")


class Settings(BaseSettings):
    """Everything that can be set from outside, with defaults that work on a laptop.

    Build it with `load_settings`. Keyword arguments win over the environment.
    """

    model_config = SettingsConfigDict(
        frozen=True,
        env_prefix="PERDURE_",
        env_ignore_empty=True,
        extra="ignore",
        populate_by_name=True,
    )

    database_url: str | None = Field(
        default=None,
        repr=False,
        validation_alias=AliasChoices("DATABASE_URL", "DATABASE_URI", "POSTGRES_URI"),
        description="PostgreSQL 14 or newer, direct or session pooling. Unset: an embedded PostgreSQL.",
    )
    data_dir: Path = Field(
        default=Path(".perdure"), description="Where the embedded PostgreSQL keeps its data and its log."
    )
    config: Path = Field(default=Path("langgraph.json"), description="The langgraph.json that names the graphs.")
    host: str = Field(default="127.0.0.1", description="Address that the HTTP server listens on.")
    port: int = Field(
        default=2024,
        ge=0,
        le=65535,
        validation_alias=AliasChoices("PERDURE_PORT", "PORT"),
        description="Port that the HTTP server listens on; 0 takes a free one.",
    )
    slots: int = Field(
        default=16,
        ge=0,
        validation_alias=AliasChoices("PERDURE_SLOTS", "N_JOBS_PER_WORKER"),
        description="Runs that one worker executes at the same time; 0 on `serve` means API only.",
    )
    lease_seconds: float = Field(
        default=10, gt=0, description="How long a silent worker keeps its runs before others take them."
    )
    max_body_bytes: int = Field(
        default=8 * 1024 * 1024, gt=0, description="Largest request body that is accepted, in bytes."
    )
    max_json_depth: int = Field(
        default=100, gt=0, description="Deepest nesting of a JSON body that is accepted, in levels."
    )
    max_attempts: int = Field(
        default=70, gt=0, description="Attempts of one run before it is paused for a person to look at."
    )
    retry_initial_seconds: float = Field(
        default=0.5, gt=0, description="Wait before the second attempt of a run; doubles with each attempt."
    )
    retry_cap_seconds: float = Field(default=60, gt=0, description="Longest wait between two attempts of a run.")
    max_duration_seconds: float | None = Field(
        default=None, gt=0, description="How long a run may take from its first start before it is paused."
    )
    idle_seconds: float | None = Field(
        default=None,
        gt=0,
        description="How long an attempt may show no step, checkpoint or event before it has failed.",
    )
    event_flush_ms: int = Field(
        default=20, ge=0, description="How long stream events are collected before they are written, in ms."
    )
    heartbeat_seconds: float = Field(
        default=5, gt=0, description="Silence on a stream or a waiting request before a heartbeat is sent."
    )
    webhook_secret: SecretStr | None = Field(
        default=None,
        description="Signs webhooks (standardwebhooks.com): whsec_ and base64; several with a space, to rotate.",
    )
    webhook_max_attempts: int = Field(
        default=12, gt=0, description="How often a webhook is tried, over about 2.5 hours."
    )
    webhook_timeout_seconds: float = Field(default=15, gt=0, description="How long one try of a webhook may take.")
    public_url: str | None = Field(
        default=None,
        description="Where others reach this server: begins links to questions, and other servers report the end of "
        "`agent(…, server=…)` to it. Unset: links are relative, and we ask those servers.",
    )
    secret: SecretStr | None = Field(
        default=None,
        description="Signs links to questions. Unset: a random one, kept in the database for all servers.",
    )
    remote_keys: SecretStr | None = Field(
        default=None,
        description='Keys for other servers, sent as x-api-key: a JSON object such as {"http://crm:2024": "key"}.',
    )
    auth: Literal["none", "keys", "oidc"] = Field(
        default="none",
        description="Who may use the API: everybody, who has a key (`perdure keys`), or who has a token of an OpenID "
        "provider. An `auth` entry in langgraph.json decides by itself.",
    )
    admins: str = Field(
        default="",
        description="Identities, with commas between, that may see in the console what belongs to nobody: workers, "
        "all keys, SQL. Without authentication everybody may.",
    )
    sql_url: SecretStr | None = Field(
        default=None,
        description="A connection to the same database for `perdure sql` and the console's SQL page, by a role that "
        "may only read. Unset: none is used, except with the embedded PostgreSQL, which has one.",
    )
    oidc_issuer: str | None = Field(
        default=None, description="The provider: the `iss` of its tokens, and where its configuration is found."
    )
    oidc_audience: str | None = Field(default=None, description="The `aud` that tokens for this server have.")
    oidc_client_id: str | None = Field(
        default=None, description="The client that the console signs people in with. Unset: they paste a token."
    )
    oidc_client_secret: SecretStr | None = Field(
        default=None, description="That client's secret, if the provider gave it one."
    )
    oidc_scopes: str = Field(default="openid profile", description="What the console asks the provider for.")
    oidc_jwks_url: str | None = Field(
        default=None, description="Where the provider's keys are. Unset: where its configuration says."
    )
    oidc_owner_claim: str = Field(default="sub", description="The claim that says who the caller is.")
    oidc_algorithms: str = Field(
        default="RS256,RS384,RS512,PS256,PS384,PS512,ES256,ES384,ES512,EdDSA",
        description="Signatures that are accepted; only those of public keys can be.",
    )
    oidc_leeway_seconds: float = Field(
        default=30, ge=0, description="How far the provider's clock may be from this server's."
    )
    rate_limit_per_minute: int | None = Field(
        default=None,
        gt=0,
        description="Requests a minute of one caller, over all servers; a key may have its own. Unset: any number.",
    )
    url: str = Field(default="http://127.0.0.1:2024", description="The server that the command line talks to.")
    api_key: SecretStr | None = Field(
        default=None, description="Key that the command line sends to that server as x-api-key."
    )
    metrics_port: int | None = Field(
        default=None,
        ge=0,
        le=65535,
        description="Where a worker without an API shows `/metrics`; 0 takes a free port. Unset: nowhere.",
    )
    metrics_host: str = Field(default="127.0.0.1", description="Address that a worker shows its metrics on.")
    otlp_endpoint: str | None = Field(
        default=None,
        repr=False,
        validation_alias=AliasChoices("OTEL_EXPORTER_OTLP_TRACES_ENDPOINT", "OTEL_EXPORTER_OTLP_ENDPOINT"),
        description="The collector that traces go to, by OTLP over HTTP; the other OTEL_ variables count as well. "
        "Unset: there are no traces.",
    )
    otel_disabled: Annotated[bool, BeforeValidator(lambda given: str(given).strip().lower() == "true")] = Field(
        default=False,
        validation_alias=AliasChoices("OTEL_SDK_DISABLED"),
        description="`true`: no traces, whatever else is set.",
    )
    trace_url: str | None = Field(
        default=None,
        description="Where the trace of a run can be looked at, for a link in the console: an address with "
        "{trace_id} or {run_id}, perhaps {thread_id}, such as https://tempo.example/trace/{trace_id}.",
    )
    log_level: str = Field(
        default="info",
        validation_alias=AliasChoices("PERDURE_LOG_LEVEL", "LOG_LEVEL"),
        description="Least severe log line that is written: debug, info, warning or error.",
    )
    log_json: bool | None = Field(
        default=None,
        description="Log lines as JSON (true) or for people (false). Unset: JSON off a terminal.",
    )
    simulated: bool = Field(
        default=False, description="Set by the server itself when the simulator stands in for a model."
    )

    @field_validator("otlp_endpoint")
    @classmethod
    def _check_otlp_endpoint(cls, value: str | None) -> str | None:
        if value is not None and not _is_http(value):
            raise ValueError("must be an address such as http://collector:4318")
        return value

    @field_validator("trace_url")
    @classmethod
    def _check_trace_url(cls, value: str | None) -> str | None:
        if value is None:
            return None
        names = set(re.findall(r"\{(\w+)\}", value))
        if not _is_http(value):
            raise ValueError("PERDURE_TRACE_URL must begin with http:// or https:// and name a host")
        if names - _TRACE_NAMES or not names & {"trace_id", "run_id"}:
            raise ValueError(
                "PERDURE_TRACE_URL must hold {trace_id} or {run_id}, and may hold {thread_id}, but no other name"
            )
        return value

    @property
    def traces_to(self) -> str | None:
        """Where traces go, without who logs in there; None: nowhere."""
        if self.otlp_endpoint is None or self.otel_disabled:
            return None
        parts = urlsplit(self.otlp_endpoint)
        return parts._replace(netloc=parts.netloc.rpartition("@")[2], query="", fragment="").geturl()

    @property
    def admin_list(self) -> list[str]:
        """The identities in `admins`."""
        return [name.strip() for name in self.admins.split(",") if name.strip()]


def load_settings(**given: Any) -> Settings:
    """The settings of this process; `None` among the keyword arguments means "not given".

    Loads `.env` and the `env` entry of langgraph.json into the environment first, because
    graph code reads its keys there. Variables that are set already are left alone.
    """
    given = {name: value for name, value in given.items() if value is not None}
    _fill_environment(dotenv_values(".env"))
    config = Settings(**given).config
    _fill_environment(config_environment(config))
    return Settings(**given)


def config_environment(config: Path) -> Mapping[str, str | None]:
    """What the `env` entry of a langgraph.json asks for: an object, or the path of an env file next to it.

    A missing or unreadable langgraph.json gives nothing: whoever needs its graphs reports it better.
    """
    try:
        raw: Any = orjson.loads(config.read_bytes())
    except (OSError, ValueError):
        return {}
    entry: Any = cast("dict[str, Any]", raw).get("env") if isinstance(raw, dict) else None
    if isinstance(entry, str):
        return dotenv_values(config.parent / entry)
    if isinstance(entry, dict):
        return {str(name): str(value) for name, value in cast("dict[Any, Any]", entry).items()}
    return {}


def fill_template(text: str, prefix: str) -> str:
    """`text` with the environment's value for each `${{ env.NAME }}`, as langgraph.json writes them.

    Raises ValueError for a variable that does not begin with `prefix`, or is not set.
    """

    def value(found: re.Match[str]) -> str:
        name = found[1]
        if not name.startswith(prefix):
            raise ValueError(f"the variable {name} must begin with {prefix}")
        if name not in os.environ:
            raise ValueError(f"the variable {name} is not set")
        return os.environ[name]

    return _TEMPLATE.sub(value, text)


def has_model_key() -> bool:
    """Whether the environment holds the key of a model provider, or names another model server."""
    return any(os.environ.get(name) for name in (*MODEL_KEYS, "OPENAI_BASE_URL", "PERDURE_MODEL"))


def point_at_simulator(base_url: str) -> None:
    """Make every OpenAI client and the graphs' default model of this process use the simulator.

    Call it before any graph is imported: model clients read these names when they are made.
    """
    os.environ["OPENAI_API_KEY"] = "simulated"
    os.environ["OPENAI_BASE_URL"] = f"{base_url.rstrip('/')}/v1"
    os.environ["PERDURE_MODEL"] = "openai:simulated-1"


def leave_loopback_to_us() -> None:
    """Keep langgraph_sdk from looking for another server in this process when a client is given no URL."""
    os.environ["__LANGGRAPH_DEFER_LOOPBACK_TRANSPORT"] = "true"


def child_environment(**given: str) -> dict[str, str]:
    """The environment of a child process that must not depend on ours: what Python needs to start, and `given`.

    No setting, model key, tracing or proxy of this process goes along.
    """
    kept = {k: v for k, v in os.environ.items() if k in _INHERITED or k.startswith(("PYTHON", "LC_"))}
    return {**kept, **given}


def _is_http(url: str) -> bool:
    try:
        parts = urlsplit(url)
        return parts.scheme in ("http", "https") and bool(parts.hostname) and url.isprintable() and " " not in url
    except ValueError:
        return False


def _fill_environment(values: Mapping[str, str | None]) -> None:
    for name, value in values.items():
        if value is not None:
            os.environ.setdefault(name, value)
