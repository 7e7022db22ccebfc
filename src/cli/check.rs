//! `heliostat check`.

use std::process::ExitCode;
use std::sync::Arc;
use std::time::Duration;

use super::{block_on, complain, say};
use crate::app::{App, levels, machine};
use crate::clock::{Clock, SystemClock};
use crate::config::{self, Config};
use crate::engine::RequestContext;
use crate::model::{Details, Replicas};
use crate::upstream::{AwsSigner, CallContext};
use crate::wire::encoding::Encoding;

/// One line of the table.
struct Line {
    name: String,
    kind: &'static str,
    address: String,
    took: Duration,
    /// The source of its credentials, if its requests are signed.
    credentials: Option<String>,
    /// The highest cost of a metric, if the upstream bills.
    cost: Option<String>,
    result: Result<(), String>,
}

/// Tests every upstream of the valid `config`.
pub(super) fn run(config: &Config) -> ExitCode {
    machine::raise_descriptor_limit();
    for warning in machine::warnings(config) {
        complain(&format!("warning: {warning}"));
    }
    let lines = match block_on(try_all(config)) {
        Ok(Ok(lines)) => lines,
        Ok(Err(error)) => {
            complain(&error);
            return ExitCode::FAILURE;
        }
        Err(error) => {
            complain(&error);
            return ExitCode::FAILURE;
        }
    };
    say(&table(&lines));
    let shared = match block_on(levels::inspect(config)) {
        Ok(None) => true,
        Ok(Some((address, Ok((version, warnings))))) => {
            say(&format!("cache.shared: {address}: {version}: ok\n"));
            for warning in warnings {
                complain(&format!("warning: cache.shared: {warning}"));
            }
            true
        }
        Ok(Some((address, Err(error)))) => {
            say(&format!("cache.shared: {address}: {error}\n"));
            false
        }
        Err(error) => {
            complain(&error);
            false
        }
    };
    if shared && lines.iter().all(|l| l.result.is_ok()) {
        ExitCode::SUCCESS
    } else {
        ExitCode::FAILURE
    }
}

async fn try_all(config: &Config) -> Result<Vec<Line>, crate::app::StartError> {
    let clock = Arc::new(SystemClock::default());
    let app = App::beside(config, clock.clone()).await?;
    let mut lines = Vec::new();
    for upstream in &config.upstreams {
        let details = Details {
            upstream: Some(upstream.name.clone()),
            ..Details::default()
        };
        let arrived = clock.monotonic();
        let deadline = tokio::time::Instant::now() + config.server.request_timeout;
        let context = RequestContext {
            arrived,
            wall: clock.now(),
            deadline,
            call: CallContext::new(None, deadline, crate::telemetry::trace::Trace::default()),
            encoding: Encoding::Identity,
            max_age: None,
            level_wait: None,
        };
        let made = app.engine.registry().named(Some(&upstream.name));
        let results = match made {
            // Each server has data that the others lack.
            Some(made) if upstream.reading.replicas == Replicas::Fill => {
                app.engine.test_each(made, &context).await
            }
            _ => {
                let result = app.engine.test(&details, &context).await;
                let urls = upstream.kind.urls().iter().map(|u| u.as_str().to_owned());
                let address = match urls.collect::<Vec<_>>().join(" ") {
                    address if address.is_empty() => "built in".to_owned(),
                    address => address,
                };
                vec![(address, result)]
            }
        };
        let signer = made.and_then(|made| made.client.signer());
        let took = clock.monotonic().saturating_sub(arrived);
        for (address, result) in results {
            lines.push(Line {
                name: upstream.name.clone(),
                kind: upstream.kind.name(),
                address,
                credentials: signer.and_then(AwsSigner::source),
                cost: cost(upstream),
                took,
                result: result.map_err(|e| e.to_string()),
            });
        }
    }
    Ok(lines)
}

/// Returns the highest cost of a metric of `upstream` that is polled all day, and of all of them
/// together, if it bills.
fn cost(upstream: &config::Upstream) -> Option<String> {
    let config::UpstreamKind::CloudWatch { units, .. } = &upstream.kind else {
        return None;
    };
    // A refresh of 0 fetches for each query.
    let refresh = upstream.freshness.refresh.max(Duration::from_secs(1));
    let a_day = (86_400.0 / refresh.as_secs_f64()).ceil();
    let money = a_day * units.price;
    let currency = &units.currency;
    let all = match units.most_per_day() {
        Some(most) => format!(
            "all at most {most} units, {:.2} {currency} a day",
            f64::from(most) * units.price
        ),
        None => "no budget: see units.per_day".to_owned(),
    };
    Some(format!(
        "a metric polled all day: {a_day} units, {money:.4} {currency}; {all}"
    ))
}

fn table(lines: &[Line]) -> String {
    let width = |of: fn(&Line) -> &str, head: &str| {
        let widths = lines.iter().map(|l| of(l).len());
        widths.chain([head.len()]).max().unwrap_or(0)
    };
    let name = width(|l| &l.name, "UPSTREAM");
    let kind = width(|l| l.kind, "KIND");
    let address = width(|l| &l.address, "ADDRESS");
    let mut text = format!(
        "{:name$}  {:kind$}  {:address$}  {:>8}  RESULT\n",
        "UPSTREAM", "KIND", "ADDRESS", "TIME"
    );
    for line in lines {
        let details = [&line.credentials, &line.cost].into_iter().flatten();
        let details: Vec<&str> = details.map(String::as_str).collect();
        let result = match &line.result {
            Ok(()) if details.is_empty() => "ok".to_owned(),
            Ok(()) => format!("ok ({})", details.join("; ")),
            Err(error) => error.clone(),
        };
        let took = format!("{} ms", line.took.as_millis());
        text.push_str(&format!(
            "{:name$}  {:kind$}  {:address$}  {took:>8}  {result}\n",
            line.name, line.kind, line.address
        ));
    }
    text
}
