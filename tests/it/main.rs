//! All integration tests, in one binary: real sockets, ports chosen by the system, an upstream
//! that records every request.
#![allow(
    missing_docs,
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::indexing_slicing,
    clippy::panic,
    clippy::print_stdout,
    clippy::print_stderr
)]

mod abuse;
mod access;
mod admin;
mod architecture;
mod aws;
mod bad_input;
mod browser;
mod cases;
mod chain;
mod cloudwatch;
mod cloudwatch_batches;
mod cloudwatch_day;
mod cloudwatch_law;
mod cloudwatch_search;
mod cloudwatch_store;
mod commands;
mod demo;
mod deploy;
mod deploy_data;
mod documents;
mod faults;
mod first_minutes;
mod fuzz;
mod holes;
mod level_faults;
mod limits;
mod moto;
mod openapi;
mod page;
mod page_in_browser;
mod panics;
mod pki;
mod prometheus;
mod prometheus_api;
mod prometheus_face;
mod prometheus_law;
mod prometheus_traps;
mod promql;
mod promtool;
mod real_replicas;
mod relay;
mod reload;
mod remote_write;
mod replicas;
mod scripted;
mod second_level;
mod secrets;
mod shared;
mod sigv4;
mod stopping;
mod support;
mod targets;
mod tls;
mod together;
mod whole;
mod wrong_config;
