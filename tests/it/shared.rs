//! How Grafana's traffic shares calls: instant queries, variables and errors.

use std::collections::BTreeSet;
use std::sync::Arc;

use reqwest::header::CACHE_CONTROL;
use serde_json::{Value, json};

use crate::scripted::{Answer, Scripted, Seen};
use crate::support::{Reply, Server, TestClock};

/// A multiple of `refresh`, which is 10 s by default.
const NOW: i64 = 1_700_000_000_000;

struct Face {
    server: Server,
    upstream: Scripted,
    clock: Arc<TestClock>,
}

impl Face {
    async fn start(
        name: &str,
        settings: &str,
        script: impl Fn(usize, &Seen) -> Answer + Send + Sync + 'static,
    ) -> Self {
        let clock = TestClock::at(NOW);
        let upstream = Scripted::start(clock.clone(), script).await;
        let toml = format!(
            "[[upstream]]\nname = {name:?}\nkind = \"prometheus\"\ndefault = true\nurls = [{:?}]\n\
             retries = 0\nbreaker = {{ failures = 1000, open = \"10s\" }}\n{settings}",
            upstream.url
        );
        let server = Server::start_at(&toml, clock.clone()).await;
        Self {
            server,
            upstream,
            clock,
        }
    }

    async fn get(&self, path: &str) -> Reply {
        self.server.get(&format!("/api/v1/{path}")).await
    }

    async fn anew(&self, path: &str, control: &str) -> Reply {
        let url = format!("{}/api/v1/{path}", self.server.url);
        let request = self.server.client().get(url).header(CACHE_CONTROL, control);
        self.server.reply(request).await
    }

    fn calls(&self) -> usize {
        self.upstream.seen().len()
    }
}

/// Returns the parameters of a request, from its URL or its form.
pub(crate) fn params(seen: &Seen) -> Vec<(String, String)> {
    let url = seen.path.split_once('?').map_or("", |(_, query)| query);
    let form = String::from_utf8_lossy(&seen.body).into_owned();
    let pairs = |text: &str| -> Vec<(String, String)> {
        url::form_urlencoded::parse(text.as_bytes())
            .into_owned()
            .collect()
    };
    [pairs(url), pairs(&form)].concat()
}

pub(crate) fn param(seen: &Seen, name: &str) -> Option<String> {
    let found = params(seen).into_iter().find(|(n, _)| n == name);
    found.map(|(_, value)| value)
}

/// A store whose series all have the evaluation time as their value.
fn store(_: usize, seen: &Seen) -> Answer {
    let time = |name| param(seen, name).map(|t| t.parse::<f64>().unwrap());
    if seen.path.starts_with("/api/v1/query_range") {
        let (start, end, step) = (time("start"), time("end"), time("step"));
        let (mut at, end, step) = (start.unwrap(), end.unwrap(), step.unwrap());
        let mut values = Vec::new();
        while at <= end {
            values.push(json!([at, format!("{at}")]));
            at += step;
        }
        let series = json!([{ "metric": { "__name__": "up" }, "values": values }]);
        return success(&json!({ "resultType": "matrix", "result": series }));
    }
    let at = time("time").unwrap_or(0.0);
    let result = json!([{ "metric": { "__name__": "up" }, "value": [at, format!("{at}")] }]);
    success(&json!({ "resultType": "vector", "result": result }))
}

fn success(data: &Value) -> Answer {
    Answer::json(json!({ "status": "success", "data": data }))
}

fn failure(status: u16, kind: &str) -> Answer {
    Answer {
        status,
        ..Answer::json(json!({ "status": "error", "errorType": kind, "error": "as it is" }))
    }
}

/// Returns the evaluation time that an answer states.
fn stated(reply: &Reply) -> f64 {
    assert_eq!(reply.status, 200, "{}", reply.text);
    let value = &reply.json()["data"]["result"][0]["value"];
    assert_eq!(
        value[0].to_string().trim_end_matches(".0"),
        value[1].as_str().unwrap()
    );
    value[0].as_f64().unwrap()
}

#[tokio::test]
async fn ten_viewers_of_four_panels_cost_a_call_for_each_panel_and_refresh() {
    let face = Face::start("shared-instant", "", store).await;
    // A refresh begins in between.
    face.clock.pass(8_000);
    let panels = ["up", "sum(up)", "max by (job) (up)", "rate(x[5m])"];
    let mut hits = 0;
    for refresh in 0..3u32 {
        for viewer in 0..10u32 {
            for panel in panels {
                let offset = f64::from(refresh) + f64::from(viewer) / 10.0;
                let time = 1_700_000_008.0 + offset;
                let path = format!("query?query={}&time={time:.3}", panel.replace(' ', "+"));
                let reply = face.get(&path).await;
                let at = stated(&reply);
                assert!(
                    at % 10.0 == 0.0 && at <= time && time - at < 10.0,
                    "{at} for {time}"
                );
                hits += usize::from(reply.header("cache-status").starts_with("heliostat; hit"));
            }
            face.clock.pass(100);
        }
    }
    assert!(face.calls() <= 8, "{} calls", face.calls());
    assert_eq!(hits, 120 - face.calls());
}

#[tokio::test]
async fn instant_queries_are_exact_where_that_is_asked_for() {
    let face = Face::start("shared-exact", "", store).await;
    face.clock.pass(7_500);
    let at = async |path: &str| stated(&face.get(path).await);
    assert_eq!(at("query?query=up").await, 1_700_000_000.0, "now");
    assert_eq!(
        at("query?query=up&time=1700000003.5").await,
        1_700_000_000.0
    );
    assert_eq!(at("query?query=up&time=1699999925").await, 1_699_999_920.0);
    assert_eq!(
        at("query?query=up&time=1699999885.25").await,
        1_699_999_885.25,
        "settled"
    );
    assert_eq!(
        at("query?query=up&time=1700003600.5").await,
        1_700_003_600.5,
        "to come"
    );
    for control in ["no-cache", "max-age=5"] {
        let reply = face.anew("query?query=up&time=1700000003.5", control).await;
        assert_eq!(stated(&reply), 1_700_000_003.5, "{control}");
    }
    let same = face
        .anew("query?query=up&time=1700000003.5", "max-age=10")
        .await;
    assert_eq!(stated(&same), 1_700_000_000.0);
    let face = Face::start("shared-exact-set", "instant_alignment = \"exact\"\n", store).await;
    face.clock.pass(7_500);
    let reply = face.get("query?query=up&time=1700000003.5").await;
    assert_eq!(stated(&reply), 1_700_000_003.5);
    face.get("query?query=up").await;
    assert_eq!(param(&face.upstream.seen()[1], "time"), None);
}

#[tokio::test]
async fn an_instant_query_is_answered_out_of_a_range_that_is_fresh() {
    let face = Face::start("shared-lane", "", store).await;
    let range = "query_range?query=up&start=1699996400&end=1700000000&step=10";
    assert_eq!(face.get(range).await.status, 200);
    for time in ["1700000000", "1700000000.999", "1699999995", "1699996400"] {
        let reply = face.get(&format!("query?query=up&time={time}")).await;
        assert_eq!(
            reply.header("cache-status").split("; ttl").next(),
            Some("heliostat; hit"),
            "{time}"
        );
        let exact = time.parse::<f64>().unwrap();
        let settled = exact < 1_699_999_880.0;
        let expected = if settled {
            exact
        } else {
            (exact / 10.0).floor() * 10.0
        };
        assert_eq!(stated(&reply), expected);
    }
    assert_eq!(face.calls(), 1);
    // Neither a time between two steps, nor an answer that has an order, nor a part of one.
    for path in [
        "query?query=up&time=1699996405",
        "query?query=sort(up)&time=1699996400",
        "query?query=up&time=1699996400&limit=1",
    ] {
        let before = face.calls();
        stated(&face.get(path).await);
        assert_eq!(face.calls(), before + 1, "{path}");
    }
}

#[tokio::test]
async fn a_variable_that_is_looked_up_each_second_costs_a_call_a_minute() {
    let names = |_: usize, _: &Seen| success(&json!(["a"]));
    let face = Face::start("shared-variables", "", names).await;
    for path in [
        "label/job/values?match[]=up&",
        "labels?",
        "series?match[]=up&",
    ] {
        let before = face.calls();
        for second in 0..5 {
            let (start, end) = (1_699_996_400 + second, 1_700_000_000 + second);
            let reply = face
                .get(&format!("{path}start={start}&end={end}.123"))
                .await;
            assert_eq!(reply.status, 200, "{}", reply.text);
            face.clock.pass(1000);
        }
        let calls = &face.upstream.seen()[before..];
        assert!(calls.len() <= 2, "{path}: {} calls", calls.len());
        for call in calls {
            let time = |name| param(call, name).unwrap().parse::<f64>().unwrap();
            assert!(time("start") <= 1_699_996_400.0 && time("start") > 1_699_996_400.0 - 60.0);
            assert!(time("end") >= 1_700_000_000.123 && time("end") < 1_700_000_065.0);
            assert!(time("start") % 60.0 == 0.0 && time("end") % 60.0 == 0.0);
        }
        face.clock.step(-5000);
    }
}

#[tokio::test]
async fn what_the_store_says_of_a_query_is_remembered_for_a_refresh() {
    let script = |_: usize, seen: &Seen| {
        let query = param(seen, "query").unwrap();
        let status: u16 = query.trim_start_matches('q').parse().unwrap();
        match status {
            502 => Answer {
                status,
                text: Some("<p>".to_owned()),
                ..Answer::default()
            },
            _ => failure(
                status,
                if status == 503 {
                    "timeout"
                } else {
                    "execution"
                },
            ),
        }
    };
    let face = Face::start("shared-errors", "", script).await;
    let range = "&start=1699996400&end=1700000000&step=10";
    for (status, remembered) in [
        (400, true),
        (422, true),
        (500, true),
        (502, false),
        (503, false),
        (429, false),
    ] {
        for path in [
            format!("query?query=q{status}&time=1700000000"),
            format!("query_range?query=q{status}{range}"),
        ] {
            if status == 429 {
                // The whole upstream pauses for a while.
                face.clock.pass(60_000);
            }
            let before = face.calls();
            let first = face.get(&path).await;
            let said = first.header("cache-status").to_owned();
            assert!(!said.contains("detail=\"error\""), "{path}: {said}");
            let second = face.get(&path).await;
            let said = second.header("cache-status");
            let hit = said == "heliostat; hit; detail=\"error\"";
            assert_eq!(hit, remembered, "{path}: {said}");
            if !remembered {
                continue;
            }
            assert_eq!(second.status, status);
            assert_eq!(
                (second.text, second.status),
                (first.text, first.status),
                "{path}"
            );
            assert_eq!(face.calls(), before + 1, "{path}");
            face.anew(&path, "no-cache").await;
            assert_eq!(face.calls(), before + 2, "{path}: asked anew");
            face.clock.pass(10_000);
            face.get(&path).await;
            assert_eq!(face.calls(), before + 3, "{path}: after a refresh");
            face.clock.step(-10_000);
        }
    }
}

#[tokio::test]
async fn three_spellings_of_an_expression_are_one_miss_and_two_hits() {
    let face = Face::start("shared-spellings", "", store).await;
    let spellings = [
        "sum by (job) (up{a=\"1\",b=\"2\"})",
        "sum(up{b='2', a=\"1\"}) by(job)",
        " sum by(job,)( (up{ a=`1`,b=\"2\", }) ) ",
    ];
    for endpoint in [
        "query?time=1700000000",
        "query_range?start=1699996400&end=1700000000&step=10",
    ] {
        let mut said = BTreeSet::new();
        for (n, spelling) in spellings.iter().enumerate() {
            let query: String = url::form_urlencoded::byte_serialize(spelling.as_bytes()).collect();
            let reply = face.get(&format!("{endpoint}&query={query}")).await;
            let hit = reply.header("cache-status").starts_with("heliostat; hit");
            assert_eq!(hit, n > 0, "{endpoint} {spelling}");
            said.insert(reply.text);
        }
        assert_eq!(said.len(), 1);
    }
    // The instant query comes first; the range query after it is one more call.
    assert_eq!(face.calls(), 2);
}
