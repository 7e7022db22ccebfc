//! Heliostat: a caching and aggregating proxy for telemetry.
//!
//! It serves StackState's mirror API in front of slow, metered and rate-limited stores. A query
//! walks through it in one direction:
//!
//! ```text
//!  client ─▶ front ─▶ wire ─▶ engine ─▶ upstream ─▶ adapters ─▶ telemetry API
//!  (HTTP)   listen,  bytes    plan,     protect:     one file     (or another
//!           admit,   to and   cache,    coalesce,    a kind of    mirror)
//!           route    from     answer    limit,retry  backend
//!                    model    │
//!                             └─ aggregate (pure arithmetic)
//! ```
//!
//! - [`cli`], [`app`]: what is typed, and the one place that puts the parts together
//! - [`config`]: a TOML file and the environment as values that cannot be wrong
//! - [`model`]: time, points, selectors, queries, errors; what all others speak of
//! - [`front`]: connections, admission, routes, the only map from errors to statuses
//! - [`wire`]: the mirror API and the Prometheus API as bytes, both ways
//! - [`promql`]: what a cache must know of an expression
//! - [`engine`]: plan, cache, fetch, answer
//! - [`aggregate`]: points into buckets
//! - [`store`]: a second level of the cache, which outlives the process
//! - [`upstream`]: everything between a fetch and a backend: limits, budgets, retries, breakers
//! - [`adapters`]: one kind of backend each, without I/O
//! - [`demo`]: the built-in demonstration source
//! - [`tls`], [`reloadable`]: certificates and keys; what is read again when its files change
//! - [`telemetry`]: logs, metrics and traces; [`clock`]: the only place that reads the machine's clocks
//!
//! Of the engine, [`engine::Engine`] is what others use; its parts are public for the benches,
//! which measure them one by one.

pub mod adapters;
pub mod aggregate;
pub mod app;
pub mod cli;
pub mod clock;
pub mod config;
pub mod demo;
pub mod engine;
pub mod front;
pub mod model;
pub mod promql;
pub mod reloadable;
pub mod store;
pub mod telemetry;
pub mod tls;
pub mod upstream;
pub mod wire;
