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
pub mod telemetry;
pub mod upstream;
pub mod wire;
