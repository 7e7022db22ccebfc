//! The front: listens, admits, routes, and turns answers and errors into HTTP.
//!
//! - `listen`, `stream`, `lenient`: connections, how they end, and request targets that need encoding
//! - `turns`: work that begins in turn of its clients
//! - `service`: what each request gets: admission, a deadline, the log line and metrics
//! - `answer`: how an admitted request is read, and given to its API
//! - `router`, `path`: which path asks for what
//! - `admission`: what each client holds of the service, and who gives way when it is full
//! - `auth`: who has access
//! - `mirror`: the mirror API's four methods
//! - `prometheus`, `endpoint`: Prometheus' HTTP API
//! - `headers`: the headers that a request is read by
//! - `respond`: what responses with data have in common
//! - `pages`: health, readiness, metrics; `assets`: the files of the page at `/`
//! - `admin`: what operators may ask and do; `browser`: what web pages may not
//! - `traffic`, `report`: the traffic of the last minutes; the configuration in use
//! - `reloads`: how a reload of the configuration is requested
//! - `body`: bodies made of slices, and the bounded reading of those of requests
//! - `status`: the only maps from errors to statuses

mod admin;
mod admission;
mod answer;
mod assets;
mod auth;
mod body;
mod browser;
mod endpoint;
mod headers;
mod lenient;
pub mod listen;
mod long_target;
pub mod mirror;
mod pages;
mod path;
mod prometheus;
mod reloads;
mod report;
mod respond;
mod router;
mod scrape;
mod service;
mod status;
mod stream;
mod traffic;
mod turns;

pub use auth::{AccessControl, Api, Credentials, Rules};
pub use body::{Body, BodyLimits, read_body};
pub use reloads::{Applied, ReloadReply, ReloadRequests, Reloads};
pub use report::{ConfigReport, ReloadReport, UpstreamEntry};
pub use service::{Front, FrontSettings};
pub use status::{error_response, prometheus_status};
pub use traffic::STEP;
