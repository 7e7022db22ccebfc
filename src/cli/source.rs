//! Where commands that query get their answers: from a running server or, with a configuration,
//! from an engine in this process.

use std::sync::Arc;

use super::block_on;
use super::client::{ConfiguredServer, Reply, ServerConnection, visibly};
use crate::app::App;
use crate::clock::SystemClock;
use crate::config::Config;
use crate::front::mirror::Method;

/// The source of answers.
pub(super) enum Source {
    /// A server, by default the one on this machine.
    Server(ConfiguredServer),
    /// An engine with this configuration.
    Engine(Box<Config>),
}

impl Source {
    /// Sends `body` to a method of the mirror API.
    pub(super) fn mirror(
        &self,
        connection: &ServerConnection,
        method: Method,
        body: Vec<u8>,
    ) -> Result<Reply, String> {
        let asked = match self {
            Self::Server(server) => block_on(connection.ask(server, method.path(), Some(body))),
            Self::Engine(config) => block_on(in_process(config, method, &body)),
        };
        asked.map_err(|e| e.to_string())?
    }

    /// Gets `path` of the server.
    pub(super) fn get(&self, connection: &ServerConnection, path: &str) -> Result<Reply, String> {
        let server = self.server()?;
        block_on(connection.ask(server, path, None)).map_err(|e| e.to_string())?
    }

    /// Posts `body` to `path` of the server.
    pub(super) fn post(
        &self,
        connection: &ServerConnection,
        path: &str,
        body: Vec<u8>,
    ) -> Result<Reply, String> {
        let server = self.server()?;
        block_on(connection.ask(server, path, Some(body))).map_err(|e| e.to_string())?
    }

    fn server(&self) -> Result<&ConfiguredServer, String> {
        match self {
            Self::Server(server) => Ok(server),
            Self::Engine(_) => Err("only a running server can tell: leave out --config".to_owned()),
        }
    }
}

/// Queries an engine in this process, without a server.
async fn in_process(config: &Config, method: Method, body: &[u8]) -> Result<Reply, String> {
    let clock = Arc::new(SystemClock::default());
    let app = App::beside(config, clock)
        .await
        .map_err(|e| e.to_string())?;
    let response = visibly("the upstream", app.front.ask(method, body)).await;
    Ok(Reply {
        status: response.status(),
        cache: String::new(),
        body: response.into_body().into_bytes(),
    })
}
