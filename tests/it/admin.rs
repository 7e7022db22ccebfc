//! The admin API.

use serde_json::{Value, json};

use crate::scripted::{Answer, Scripted};
use crate::support::{ADMIN, ADMIN_TOKEN, Reply, Server, TestClock};

const NOW: i64 = 1_790_000_000_000;
const HOUR: i64 = 3_600_000;

/// A mirror with a point each minute, whose value is the number of earlier requests.
async fn mirror(clock: &std::sync::Arc<TestClock>) -> Scripted {
    Scripted::start(clock.clone(), |n, seen| {
        let asked = seen.json();
        let time = |name: &str| asked["query"][name].as_i64().unwrap();
        let first = (time("startTime") + 59_999) / 60_000 * 60_000;
        let times = (first..time("endTime")).step_by(60_000);
        let points: Vec<Value> = times.map(|t| json!([n, t])).collect();
        Answer::json(json!({
            "telemetry": {
                "points": points,
                "dataFormat": ["value", "timestamp"],
                "isPartial": false,
                "_type": "RawMetricTelemetry",
            },
            "_type": "MetricsResponse",
        }))
    })
    .await
}

struct World {
    source: Scripted,
    clock: std::sync::Arc<TestClock>,
    server: Server,
}

async fn post(server: &Server, path: &str, body: &Value) -> Reply {
    let url = format!("{}/admin/v1/{path}", server.url);
    let request = server.client().post(url).body(body.to_string());
    server.reply(request.bearer_auth(ADMIN_TOKEN)).await
}

impl World {
    async fn new(name: &str, more: &str) -> Self {
        let clock = TestClock::at(NOW);
        let source = mirror(&clock).await;
        let toml = format!(
            "{ADMIN}[[upstream]]\nname = {name:?}\nkind = \"mirror\"\nurls = [{:?}]\ninterval = \"1m\"\n{more}",
            source.url
        );
        let server = Server::start_at(&toml, clock.clone()).await;
        Self {
            source,
            clock,
            server,
        }
    }

    async fn get(&self, path: &str) -> Reply {
        let url = format!("{}/admin/v1/{path}", self.server.url);
        let request = self.server.client().get(url).bearer_auth(ADMIN_TOKEN);
        self.server.reply(request).await
    }

    async fn post(&self, path: &str, body: &Value) -> Reply {
        post(&self.server, path, body).await
    }

    /// Queries `range` of the series `name`; returns its values.
    async fn values(&self, name: &str, range: (i64, i64)) -> Vec<f64> {
        let answer = self.server.post("/api/metric", &query(name, range)).await;
        assert_eq!(answer.status, 200, "{}", answer.text);
        answer.points().iter().map(|p| p[0]).collect()
    }

    async fn explained(&self, body: &Value) -> Value {
        let answer = self.post("explain/api/metric", body).await;
        assert_eq!(answer.status, 200, "{}", answer.text);
        answer.json()
    }
}

fn query(name: &str, (start, end): (i64, i64)) -> Value {
    json!({
        "connectionDetails": {},
        "query": {
            "conditions": [{ "key": "name", "value": name }, { "key": "host", "value": "h" }],
            "startTime": start,
            "endTime": end,
        },
    })
}

#[tokio::test]
async fn an_explanation_says_what_is_cached_and_what_would_be_fetched_and_fetches_nothing() {
    let world = World::new("explained", "refresh = \"10s\"\nsettle = \"2m\"").await;
    let range = (NOW - 2 * HOUR, NOW);
    let before = world.explained(&query("a", range)).await;
    assert_eq!(before["answer"], "fetch");
    assert_eq!(before["upstream"], "explained");
    let stretch = &before["stretches"][0];
    assert_eq!(stretch["held"], "miss");
    assert_eq!(stretch["missing"][0]["calls"], json!(["POST /api/metric"]));
    let why = stretch["missing"][0]["why"].as_array().unwrap();
    let reasons: Vec<_> = why.iter().map(|w| w["reason"].as_str().unwrap()).collect();
    assert_eq!(reasons, ["unknown", "ahead"]);
    assert_eq!(world.source.seen().len(), 0, "nothing was fetched");

    world.values("a", range).await;
    let hit = world.explained(&query("a", range)).await;
    assert_eq!(hit["answer"], "cache");
    assert_eq!(hit["stretches"][0]["freshSeconds"], 10.0);
    let cached = hit["stretches"][0]["cached"].as_array().unwrap();
    let settled: Vec<_> = cached
        .iter()
        .map(|c| c["settled"].as_bool().unwrap())
        .collect();
    assert_eq!(settled, [true, false]);

    world.clock.pass(30_000);
    let expired = world.explained(&query("a", range)).await;
    assert_eq!(expired["answer"], "fetch");
    assert_eq!(expired["stretches"][0]["held"], "stale");
    let missing = &expired["stretches"][0]["missing"][0];
    assert_eq!(missing["why"][0]["reason"], "expired");
    assert_eq!(missing["startTime"], NOW - 120_000);
    let cached = &expired["stretches"][0]["cached"][1];
    assert_eq!(
        (&cached["ageSeconds"], &cached["freshSeconds"]),
        (&json!(30.0), &json!(-20.0))
    );
    assert_eq!(expired["stretches"][0]["fallbackTo"], NOW);

    // Buckets list what they are made of.
    let mut buckets = query("a", range);
    buckets["query"]["aggregation"] = json!({ "method": "MAX", "bucketSizeMillis": 300_000 });
    let made = world.explained(&buckets).await;
    assert_eq!(made["stretches"][0]["held"], "miss");
    assert_eq!(made["stretches"][0]["madeOf"]["held"], "partial");
    assert_eq!(world.source.seen().len(), 1);
}

#[tokio::test]
async fn what_is_waited_for_is_what_is_being_fetched() {
    let clock = TestClock::at(NOW);
    let source = Scripted::start(clock.clone(), |_, _| Answer {
        gate: true,
        ..Answer::json(json!({}))
    })
    .await;
    let toml = format!(
        "{ADMIN}[[upstream]]\nname = \"gated\"\nkind = \"mirror\"\nurls = [{:?}]\nretries = 0",
        source.url
    );
    let server = Server::start_at(&toml, clock).await;
    let [here, elsewhere] =
        [5, 9].map(|hour| query("a", (NOW - hour * HOUR, NOW - (hour - 1) * HOUR)));
    let explained = async {
        source.asked(1).await;
        for (asked, answer) in [(here.clone(), "wait"), (elsewhere, "fetch")] {
            let said = post(&server, "explain/api/metric", &asked).await.json();
            assert_eq!(said["answer"], answer, "{said}");
            let under_way = &said["stretches"][0]["underWay"];
            assert_eq!(under_way, &json!(answer == "wait"));
        }
        source.open();
    };
    tokio::join!(server.post("/api/metric", &here), explained);
}

#[tokio::test]
async fn an_explanation_says_what_would_be_refused_and_why() {
    let clock = TestClock::at(NOW);
    let source = mirror(&clock).await;
    let one = |name: &str, url: &str, more: &str| {
        format!(
            "[[upstream]]\nname = {name:?}\nkind = \"mirror\"\nurls = [{url:?}]\nretries = 0\n{more}\n"
        )
    };
    let toml = ADMIN.to_owned()
        + &one(
            "spent",
            &source.url,
            "rate_limit = { per_second = 50, burst = 50, per_hour = 1 }",
        )
        + &one(
            "shut",
            "http://127.0.0.1:9",
            "breaker = { failures = 1, open = \"1h\" }",
        );
    let server = Server::start_at(&toml, clock).await;
    for (upstream, why) in [("spent", "budget"), ("shut", "breaker")] {
        let asked = |hour: i64| {
            let start = NOW - hour * HOUR;
            let mut asked = query("a", (start, start + 600_000));
            asked["connectionDetails"] = json!({ "upstream": upstream });
            asked
        };
        let path = "explain/api/metric";
        let before = post(&server, path, &asked(5)).await.json();
        assert_eq!(before["answer"], "fetch", "{before}");
        server.post("/api/metric", &asked(5)).await;
        let said = post(&server, path, &asked(9)).await.json();
        assert_eq!(said["answer"], "refused", "{said}");
        let reason = said["refused"].as_str().unwrap();
        assert!(reason.contains(why), "{reason}");
        let real = server.post("/api/metric", &asked(9)).await;
        assert!(
            real.status >= 400 && real.text.contains(why),
            "{}",
            real.text
        );
    }
    let refused = "heliostat_upstream_rejected_total{upstream=\"spent\",reason=\"budget\"}";
    assert_eq!(
        server.metric(refused).await,
        1.0,
        "explaining counts nothing"
    );
}

#[tokio::test]
async fn an_explanation_says_when_expired_data_is_served_meanwhile() {
    let keys = "stale_while_revalidate = \"1m\"\nrefresh = \"10s\"\nsettle = \"2m\"";
    let world = World::new("meanwhile", keys).await;
    let end = NOW - NOW % 60_000;
    let range = (end - HOUR, end);
    let mut buckets = query("a", range);
    buckets["query"]["aggregation"] = json!({ "method": "MAX", "bucketSizeMillis": 60_000 });
    // Beyond now, so that all raw points of the buckets are known.
    world.values("a", (range.0, NOW + 600_000)).await;
    world.clock.pass(30_000);
    let raw = world.explained(&query("a", range)).await;
    assert_eq!(raw["answer"], "expired");
    // Buckets that are not cached are computed from fresh raw points.
    let made = world.explained(&buckets).await;
    assert_eq!(made["stretches"][0]["madeOf"]["held"], "stale");
    assert_eq!(made["answer"], "fetch");
    world.clock.pass(60_000);
    let raw = world.explained(&query("a", range)).await;
    assert_eq!(raw["answer"], "fetch", "it expired too long ago");
    assert_eq!(world.source.seen().len(), 1);
}

#[tokio::test]
async fn lists_are_explained_and_what_cannot_be_is_said() {
    let world = World::new("lists", "").await;
    let names = json!({ "connectionDetails": {}, "query": { "conditions": [] } });
    let said = world.post("explain/api/field/name", &names).await;
    assert_eq!(said.status, 200, "{}", said.text);
    assert_eq!(said.json()["whole"]["held"], "miss");
    assert_eq!(world.source.seen().len(), 0);
    let bad = world.post("explain/api/metric", &json!({})).await;
    assert_eq!(bad.status, 400);
    for path in [
        "explain/api/connection",
        "explain/api/nothing",
        "explain/metrics",
    ] {
        assert_eq!(world.post(path, &json!({})).await.status, 404, "{path}");
    }
    assert_eq!(world.get("explain/api/metric").await.status, 405);
}

#[tokio::test]
async fn what_is_invalidated_is_fetched_anew_and_nothing_else() {
    let world = World::new("forgetful", "").await;
    let range = (NOW - 10 * HOUR, NOW - 9 * HOUR);
    for name in ["a", "b"] {
        world.values(name, range).await;
    }
    let ten_minutes = (range.0 + 600_000, range.0 + 1_200_000);
    let body = json!({
        "upstream": "forgetful",
        "conditions": [{ "key": "name", "value": "a" }],
        "startTime": ten_minutes.0,
        "endTime": ten_minutes.1,
    });
    let said = world.post("invalidate", &body).await;
    assert_eq!(said.json(), json!({ "upstream": "forgetful", "chunks": 1 }));
    let values = world.values("a", range).await;
    let fetched: Vec<_> = values.iter().map(|v| *v == 2.0).collect();
    let expected: Vec<_> = (0..60).map(|minute| (10..20).contains(&minute)).collect();
    assert_eq!(fetched, expected);
    assert_eq!(
        world.source.seen()[2].json()["query"]["startTime"],
        ten_minutes.0
    );
    assert!(world.values("b", range).await.iter().all(|v| *v == 1.0));
    assert_eq!(world.source.seen().len(), 3);

    let said = world
        .post("invalidate", &json!({ "upstream": "forgetful" }))
        .await;
    assert_eq!(said.json()["chunks"], 2);
    assert!(world.values("b", range).await.iter().all(|v| *v == 3.0));

    let unknown = world
        .post("invalidate", &json!({ "upstream": "nobody" }))
        .await;
    assert_eq!(unknown.status, 400);
    assert!(
        unknown.text.contains("the upstreams are forgetful"),
        "{}",
        unknown.text
    );
}

#[tokio::test]
async fn what_was_being_fetched_when_it_was_invalidated_is_not_kept() {
    let clock = TestClock::at(NOW);
    let source = Scripted::start(clock.clone(), |n, seen| {
        let start = seen.json()["query"]["startTime"].clone();
        let telemetry = json!({
            "points": [[n, start]], "dataFormat": ["value", "timestamp"],
            "isPartial": false, "_type": "RawMetricTelemetry",
        });
        Answer {
            gate: true,
            ..Answer::json(json!({ "telemetry": telemetry, "_type": "MetricsResponse" }))
        }
    })
    .await;
    let toml = format!(
        "{ADMIN}[[upstream]]\nname = \"racing\"\nkind = \"mirror\"\nurls = [{:?}]",
        source.url
    );
    let server = Server::start_at(&toml, clock).await;
    let body = query("a", (NOW - 2 * HOUR, NOW - HOUR));
    let first = server.post("/api/metric", &body);
    let second = async {
        source.asked(1).await;
        let forget = json!({ "upstream": "racing" });
        post(&server, "invalidate", &forget).await;
        // A request after the invalidation does not join a fetch from before it.
        let second = server.post("/api/metric", &body);
        let open = async {
            source.asked(2).await;
            source.open();
            source.open();
        };
        tokio::join!(second, open).0
    };
    let (first, second) = tokio::join!(first, second);
    assert_eq!(first.points()[0][0], 0.0);
    assert_eq!(second.points()[0][0], 1.0);
    let third = server.post("/api/metric", &body).await;
    assert_eq!(
        third.points()[0][0],
        1.0,
        "{}",
        third.header("cache-status")
    );
}

#[tokio::test]
async fn protection_and_cache_are_shown_by_upstream() {
    let more = "rate_limit = { per_second = 5, burst = 7, per_hour = 10 }\nmax_concurrency = 3";
    let world = World::new("shown", more).await;
    let range = (NOW - 2 * HOUR, NOW - HOUR);
    world.values("a", range).await;
    world.values("b", range).await;
    for _ in 0..3 {
        world.values("b", range).await;
    }
    let state = world.get("upstreams").await.json();
    let state = &state["upstreams"][0];
    assert_eq!(state["upstream"], "shown");
    let limiter = &state["state"]["limiter"];
    assert_eq!(
        (&limiter["perSecond"], &limiter["mayRun"]),
        (&json!(5.0), &json!(3))
    );
    let budget = &state["state"]["budgets"][0];
    assert_eq!(
        (&budget["per"], &budget["used"]),
        (&json!("hour"), &json!(2))
    );
    let endpoint = &state["state"]["endpoints"][0];
    assert_eq!(
        (&endpoint["breaker"], &endpoint["failures"]),
        (&json!("closed"), &json!(0))
    );

    let cache = world.get("cache").await.json();
    let cache = &cache["upstreams"][0];
    assert_eq!((&cache["lanes"], &cache["chunks"]), (&json!(2), &json!(2)));
    assert!(cache["bytes"].as_u64().unwrap() > 1000);
    let hottest = cache["hottest"].as_array().unwrap();
    let hottest: Vec<_> = hottest
        .iter()
        .map(|lane| {
            (
                lane["conditions"][1]["value"]["value"].as_str().unwrap(),
                lane["answers"].as_u64().unwrap(),
            )
        })
        .collect();
    assert_eq!(hottest, [("b", 3), ("a", 0)]);
}

#[tokio::test]
async fn the_configuration_is_read_again_on_demand() {
    let world = World::new("reread", "").await;
    let said = world.post("reload", &json!({})).await;
    assert_eq!(said.json()["kept"], json!(["reread"]));
}

#[tokio::test]
async fn browsers_and_wrong_requests_are_refused() {
    let world = World::new("refusing", "").await;
    let request = world
        .server
        .client()
        .post(format!("{}/admin/v1/reload", world.server.url));
    let refused = world
        .server
        .reply(
            request
                .bearer_auth(ADMIN_TOKEN)
                .header("origin", "http://evil"),
        )
        .await;
    assert_eq!(refused.status, 403);
    let wrong = world.get("reload").await;
    assert_eq!((wrong.status, wrong.header("allow")), (405, "POST"));
    assert_eq!(world.get("nothing").await.status, 404);
    let body = json!({ "upstream": "refusing", "condition": [] });
    let misspelled = world.post("invalidate", &body).await;
    assert_eq!(misspelled.status, 400);
    assert!(
        misspelled.text.contains("the known names are upstream"),
        "{}",
        misspelled.text
    );
}
