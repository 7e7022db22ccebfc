//! Heliostat: a caching and aggregating proxy for telemetry.
//!
//! It serves StackState's mirror API and Prometheus' HTTP API in front of slow, metered or
//! rate-limited stores. A query passes through it in one direction (`docs/architecture.md`):
//!
//! ```text
//!  client ─▶ front ─▶ wire ─▶ engine ─▶ upstream ─▶ adapters ─▶ telemetry API
//!  (HTTP)   listen,  bytes    plan,     protect:     one module   (or another
//!           admit,   to and   cache,    coalesce,    per kind     mirror)
//!           route    from     answer    limit, retry of backend
//!                    model    │
//!                             └─ aggregate (pure arithmetic)
//! ```
//!
//! - [`cli`], [`app`]: the command line, and the composition root
//! - [`config`]: a TOML file and the environment as validated values
//! - [`model`]: time, points, selectors, queries, errors: the types that all others share
//! - [`front`]: connections, admission, routes, the only map from errors to statuses
//! - [`wire`]: the mirror API and the Prometheus API as bytes, both ways
//! - [`promql`]: the properties of an expression that a cache has to know
//! - [`engine`]: plan, cache, fetch, answer
//! - [`aggregate`]: from points to buckets
//! - [`store`]: a second level of the cache, which outlives the process
//! - [`upstream`]: everything between a fetch and a backend: limits, budgets, retries, breakers
//! - [`adapters`]: one kind of backend each, without I/O
//! - [`demo`]: the built-in demonstration source
//! - [`tls`], [`files`], [`reloadable`]: certificates and keys; bounded reading of files; values that are reloaded when their files change
//! - [`work`]: long work off the threads that serve
//! - [`telemetry`]: logs, metrics and traces; [`clock`]: the only place that reads the machine's clocks
//!
//! Other modules use [`engine::Engine`]; the parts of the engine are public for the benches, which
//! measure them one by one.

pub mod adapters;
pub mod aggregate;
pub mod app;
pub mod cli;
pub mod clock;
pub mod config;
pub mod demo;
pub mod engine;
pub mod files;
pub mod front;
pub mod model;
pub mod promql;
pub mod reloadable;
pub mod store;
pub mod telemetry;
pub mod tls;
pub mod upstream;
pub mod wire;
pub mod work;
