//! What a day costs: the table of docs/cloudwatch.md, and a simulated day that costs so much.
//!
//! `HELIOSTAT_DAY_STREAMS=200 cargo test --release --test it -- cloudwatch_day --nocapture` simulates the
//! whole table, and prints it. Without the variable two streams are simulated, at the default `refresh`.

use futures_util::future::join_all;
use serde_json::Value;

use crate::cloudwatch::{ask, lambda, query, read, state};
use crate::cloudwatch_store::{CloudWatchStore, DAY, HOUR, MINUTE, Metric, SECOND};
use crate::fuzz::number;
use crate::support::{ADMIN, Server, TestClock};

const NOW: i64 = 1_790_000_000_000;
const PRICE: f64 = 0.000_01;

/// Streams of the table, and the hours of a day that viewers look.
const STREAMS: i64 = 200;
const VIEWERS: i64 = 3;
const HOURS: std::ops::Range<i64> = 8..18;

/// The settings of `refresh` in the table, in minutes, as it names them.
const ROWS: [(i64, &str); 3] = [
    (1, "`refresh = \"1m\"`"),
    (2, "`refresh = \"2m\"` (default)"),
    (5, "`refresh = \"5m\"`, for all or by a rule"),
];

/// Returns how many of `streams` a viewer looks at.
fn watched(streams: i64) -> i64 {
    (streams / 10).max(1)
}

/// Returns the queries of a day: each stream is polled once a minute, and by the anomaly detector once an
/// hour; viewers fetch what they look at every 30 s.
fn queries(streams: i64) -> i64 {
    let polls = streams * (DAY / MINUTE + DAY / HOUR);
    polls + VIEWERS * watched(streams) * (HOURS.end - HOURS.start) * (HOUR / (30 * SECOND))
}

/// Returns the least units of a day: one a stream and refresh.
fn least(streams: i64, refresh: i64) -> i64 {
    streams * DAY / (refresh * MINUTE)
}

/// A row of the table.
fn row(name: &str, units: i64) -> String {
    let month = units as f64 * PRICE * 30.0;
    format!(
        "| {name} | {},{:03} | {month:.0} |",
        units / 1000,
        units % 1000
    )
}

#[test]
fn the_docs_have_the_table_as_it_is_computed() {
    let docs = include_str!("../../docs/cloudwatch.md");
    let refreshed = ROWS.map(|(refresh, name)| row(name, least(STREAMS, refresh)));
    let asked = row("each query requested", queries(STREAMS));
    let table = [vec![asked], refreshed.to_vec()].concat().join("\n");
    println!("{table}");
    assert!(docs.contains(&table), "docs/cloudwatch.md lacks:\n{table}");
}

/// A day of so many streams, at `refresh` minutes. Returns the units as the admin API has them.
async fn day(streams: i64, refresh: i64) -> Value {
    let clock = TestClock::at(NOW);
    let store = CloudWatchStore::start(clock.clone()).await;
    let more = format!("refresh = \"{refresh}m\"\ntimeout = \"100s\"");
    let section = store.section(&format!("day-{refresh}"), &more);
    let config = format!("[server]\nrequest_timeout = \"100s\"\n{section}{ADMIN}");
    let server = Server::start_at(&config, clock.clone()).await;
    let metrics: Vec<Metric> = (0..streams).map(|n| lambda(&format!("f{n}"))).collect();
    for metric in &metrics {
        // As few samples as there can be: what they are is of no matter here.
        store.put_now(metric, (0..DAY / HOUR).map(|n| (NOW + n * HOUR, 1.0)));
    }
    let watched = watched(streams);
    for second in (0..DAY / SECOND).step_by(10) {
        let now = NOW + second * SECOND;
        let mut due = Vec::new();
        for (n, metric) in metrics.iter().enumerate() {
            let n = n as i64;
            let mut query = |span, method, size| {
                due.push(query(metric, (now - span, now), Some((method, size))));
            };
            // Spread over the minute.
            if second % 60 == n % 6 * 10 {
                let methods = ["MEAN", "MAX", "SUM", "EVENT_COUNT"];
                query(2 * MINUTE, methods[(n % 4) as usize], MINUTE);
                if second % 3600 == n % 6 * 10 {
                    query(HOUR, "MEAN", MINUTE);
                }
            }
            for viewer in 0..VIEWERS {
                let looks = HOURS.contains(&(second / 3600)) && n < watched;
                if looks && second % 30 == viewer * 10 {
                    let spans = [(HOUR, MINUTE), (6 * HOUR, 5 * MINUTE), (DAY, HOUR)];
                    let (span, size) = spans[viewer as usize];
                    query(span, "MEAN", size);
                }
            }
        }
        // At once, as each call waits for more queries.
        let due = due.iter().map(|query| ask(&server, query));
        for reply in join_all(due).await {
            read(&reply);
        }
        clock.pass(10 * SECOND as u64);
    }
    let units = state(&server).await["units"].clone();
    assert_eq!(units["asked"], store.metered().0, "counted as it is billed");
    units
}

#[tokio::test]
async fn a_day_costs_a_unit_a_stream_and_refresh() {
    let few = std::env::var_os("HELIOSTAT_DAY_STREAMS").is_none();
    let streams = number("HELIOSTAT_DAY_STREAMS", 2) as i64;
    for (refresh, name) in ROWS {
        if few && refresh != 2 {
            continue;
        }
        let units = day(streams, refresh).await;
        let (asked, least) = (units["asked"].as_i64().unwrap(), least(streams, refresh));
        let times = asked as f64 / least as f64;
        println!(
            "{name}: {streams} streams, {asked} units, {times:.4} times the least of {least}; {} {} a day, {} for each query",
            units["cost"], units["currency"], units["requested"]
        );
        assert!(
            (0.98..=1.02).contains(&times),
            "{asked} units, at least {least}"
        );
        assert_eq!(units["requested"], queries(streams));
        // To the cent, and less.
        let money = |key: &str| units[key].as_f64().unwrap();
        let avoided = units["requested"].as_i64().unwrap() - asked;
        for (key, units) in [("cost", asked), ("costAvoided", avoided)] {
            let right = units as f64 * PRICE;
            assert!(
                (money(key) - right).abs() < 0.000_1,
                "{key}: {} for {units}",
                money(key)
            );
        }
    }
}
