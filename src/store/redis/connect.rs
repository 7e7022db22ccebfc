//! Connections to the server: a single one, through Sentinels, or a cluster.

use std::time::Duration;

use redis::aio::MultiplexedConnection;
use redis::cluster::ClusterClient;
use redis::cluster_async::ClusterConnection;
use redis::sentinel::{SentinelClientBuilder, SentinelServerType};
use redis::{
    AsyncConnectionConfig, Client, ClientTlsConfig, ConnectionInfo, FromRedisValue,
    IntoConnectionInfo, RedisError, TlsCertificates, TlsMode, Value,
};

use crate::store::LevelFailure;

/// Most time to connect.
const CONNECT: Duration = Duration::from_secs(1);

/// Most time of a command, beyond which nobody waits for it.
const COMMAND: Duration = Duration::from_secs(2);

/// Settings of connections to the server.
#[derive(Clone)]
pub struct RedisSettings {
    /// `redis://host:port` or `rediss://host:port`; of a cluster or of Sentinels, several.
    pub urls: Vec<String>,
    /// The kind of server that the URLs lead to.
    pub mode: RedisMode,
    /// A user of its ACL.
    pub username: Option<String>,
    /// The password of that user, or of the server.
    pub password: Option<String>,
    /// A user of the Sentinels' ACL.
    pub sentinel_username: Option<String>,
    /// The password of the Sentinels.
    pub sentinel_password: Option<String>,
    /// Authorities, in PEM, that are trusted instead of the system's.
    pub ca: Option<Vec<u8>>,
    /// A certificate to prove ourselves with, and its key, in PEM.
    pub identity: Option<(Vec<u8>, Vec<u8>)>,
    /// The start of every key.
    pub prefix: String,
    /// Keys are hashed and values sealed with it.
    pub secret: String,
    /// Whether replicas take leases, so that one of them fetches for all.
    pub fetch_once: bool,
    /// The name of this replica.
    pub name: String,
}

/// The kind of server that URLs lead to.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum RedisMode {
    /// One server.
    Single,
    /// Nodes of a cluster.
    Cluster,
    /// Sentinels that know the master of this name.
    Sentinel(String),
}

/// A connection that many commands share.
#[derive(Clone)]
pub(super) enum Connection {
    One(MultiplexedConnection),
    Cluster(ClusterConnection),
}

impl Connection {
    /// Connects as `settings` say.
    pub(super) async fn open(settings: &RedisSettings) -> Result<Self, LevelFailure> {
        let connecting = connect(settings);
        match tokio::time::timeout(2 * CONNECT, connecting).await {
            Ok(connected) => connected.map_err(|e| failure(&e)),
            Err(_) => Err(LevelFailure::Timeout),
        }
    }

    /// Sends a command.
    pub(super) async fn ask<T: FromRedisValue>(
        &self,
        command: &redis::Cmd,
    ) -> Result<T, LevelFailure> {
        let asked = match self.clone() {
            Self::One(mut one) => command.query_async(&mut one).await,
            Self::Cluster(mut cluster) => command.query_async(&mut cluster).await,
        };
        asked.map_err(|e| failure(&e))
    }

    pub(super) fn is_cluster(&self) -> bool {
        matches!(self, Self::Cluster(_))
    }
}

fn failure(error: &RedisError) -> LevelFailure {
    let text = error.to_string();
    match error.code() {
        Some("OOM") => LevelFailure::Full(text),
        _ if error.is_timeout() => LevelFailure::Timeout,
        // A script says it in its own words.
        _ if text.contains("OOM command not allowed") => LevelFailure::Full(text),
        _ => LevelFailure::Error(text),
    }
}

fn certificates(settings: &RedisSettings) -> TlsCertificates {
    let identity = settings.identity.clone();
    TlsCertificates {
        client_tls: identity.map(|(client_cert, client_key)| ClientTlsConfig {
            client_cert,
            client_key,
        }),
        root_cert: settings.ca.clone(),
    }
}

/// Returns the connection settings in `url`, with the user and password of `settings`.
fn info(settings: &RedisSettings, url: &str) -> Result<ConnectionInfo, RedisError> {
    let info = url.into_connection_info()?;
    let mut redis = info.redis_settings().clone();
    if let Some(username) = &settings.username {
        redis = redis.set_username(username);
    }
    if let Some(password) = &settings.password {
        redis = redis.set_password(password);
    }
    Ok(info.set_redis_settings(redis))
}

async fn connect(settings: &RedisSettings) -> Result<Connection, RedisError> {
    let config = AsyncConnectionConfig::new()
        .set_connection_timeout(Some(CONNECT))
        .set_response_timeout(Some(COMMAND));
    let infos = settings.urls.iter().map(|url| info(settings, url));
    let infos = infos.collect::<Result<Vec<_>, _>>()?;
    let secure = settings.urls.iter().any(|url| url.starts_with("rediss:"));
    let certificates = certificates(settings);
    match &settings.mode {
        RedisMode::Single => {
            let Some(info) = infos.into_iter().next() else {
                return Err((redis::ErrorKind::InvalidClientConfig, "no URL").into());
            };
            let client = match secure {
                true => Client::build_with_tls(info, certificates)?,
                false => Client::open(info)?,
            };
            let one = client.get_multiplexed_async_connection_with_config(&config);
            Ok(Connection::One(one.await?))
        }
        RedisMode::Cluster => {
            let mut builder = ClusterClient::builder(infos)
                .connection_timeout(CONNECT)
                .response_timeout(COMMAND)
                .retries(2);
            if secure {
                builder = builder.tls(TlsMode::Secure).certs(certificates);
            }
            if let Some(username) = &settings.username {
                builder = builder.username(username);
            }
            if let Some(password) = &settings.password {
                builder = builder.password(password);
            }
            let cluster = builder.build()?.get_async_connection().await?;
            Ok(Connection::Cluster(cluster))
        }
        RedisMode::Sentinel(master) => {
            let addresses = infos.iter().map(|info| info.addr().clone());
            let kind = SentinelServerType::Master;
            let mut builder = SentinelClientBuilder::new(addresses, master.clone(), kind)?;
            if secure {
                builder = builder
                    .set_client_to_redis_tls_mode(TlsMode::Secure)
                    .set_client_to_redis_certificates(certificates.clone())
                    .set_client_to_sentinel_tls_mode(TlsMode::Secure)
                    .set_client_to_sentinel_certificates(certificates);
            }
            if let Some(username) = &settings.username {
                builder = builder.set_client_to_redis_username(username);
            }
            if let Some(password) = &settings.password {
                builder = builder.set_client_to_redis_password(password);
            }
            if let Some(username) = &settings.sentinel_username {
                builder = builder.set_client_to_sentinel_username(username);
            }
            if let Some(password) = &settings.sentinel_password {
                builder = builder.set_client_to_sentinel_password(password);
            }
            let mut client = builder.build()?;
            let one = client.get_async_connection_with_config(&config);
            Ok(Connection::One(one.await?))
        }
    }
}

/// Tries the server of `settings`: its version, and what about it will hurt.
pub async fn inspect(settings: &RedisSettings) -> Result<(String, Vec<String>), LevelFailure> {
    let connection = Connection::open(settings).await?;
    let said: Value = connection.ask(&redis::cmd("INFO")).await?;
    let mut text = String::new();
    flatten(&said, &mut text);
    let field = |name: &str| {
        let mut lines = text.lines();
        lines.find_map(|line| Some(line.strip_prefix(name)?.strip_prefix(':')?.trim()))
    };
    let version = field("valkey_version").map(|v| format!("Valkey {v}"));
    let version = version.or_else(|| field("redis_version").map(|v| format!("Redis {v}")));
    let mut warnings = Vec::new();
    if field("maxmemory") == Some("0") {
        warnings.push("maxmemory is not set: the server grows until it is killed".to_owned());
    }
    if field("maxmemory_policy") == Some("noeviction") {
        warnings.push(
            "maxmemory-policy is noeviction: once it is full, nothing new is cached; set allkeys-lru".to_owned(),
        );
    }
    if connection.is_cluster() {
        let mut command = redis::cmd("CONFIG");
        command.arg("GET").arg("cluster-require-full-coverage");
        // A user of an ACL may not be allowed to ask.
        if let Ok(said) = connection.ask::<Value>(&command).await {
            let mut text = String::new();
            flatten(&said, &mut text);
            if text.lines().any(|line| line == "yes") {
                warnings.push("cluster-require-full-coverage is yes: while one master is down, the whole cluster is; set no".to_owned());
            }
        }
    }
    Ok((version.unwrap_or_else(|| "unknown".into()), warnings))
}

/// All text of a reply, which a cluster gives by node.
fn flatten(value: &Value, text: &mut String) {
    match value {
        Value::BulkString(bytes) => {
            text.push_str(&String::from_utf8_lossy(bytes));
            text.push('\n');
        }
        Value::SimpleString(said) => {
            text.push_str(said);
            text.push('\n');
        }
        Value::VerbatimString { text: said, .. } => text.push_str(said),
        Value::Array(values) => values.iter().for_each(|value| flatten(value, text)),
        Value::Map(pairs) => pairs.iter().for_each(|(_, value)| flatten(value, text)),
        _ => {}
    }
}
