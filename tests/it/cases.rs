//! API cases as data. Each folder of `tests/cases` is one: the clients' requests, the upstreams'
//! answers, and what is expected on both sides. `tests/cases/README.md` describes the format.
//!
//! `CASE=part-of-a-name cargo test --test it every_case` runs some of them.

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use serde::Deserialize;
use serde_json::{Map, Value, json};
use tokio::sync::Semaphore;

use crate::scripted::{Answer, Fault, Scripted, Seen};
use crate::support::{Reply, Server, TestClock, metric as metric_in};

/// The time at which a case begins: a multiple of ten minutes.
const NOW: i64 = 1_200_000_000;

/// Stands for any text in an expected string.
const ANY: char = '…';

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Request {
    /// A description of the case.
    #[serde(rename = "about")]
    _about: String,
    /// `server` and `targets` as in the configuration; any other key is an upstream.
    #[serde(default)]
    config: Map<String, Value>,
    /// Milliseconds of the runtime's time, in which time-outs are measured, that pass whenever an
    /// answer of an upstream hangs, stalls or comes slowly.
    #[serde(default)]
    stuck_for: u64,
    steps: Vec<Step>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Step {
    #[serde(default = "post")]
    method: String,
    #[serde(default = "metric")]
    path: String,
    #[serde(default)]
    headers: BTreeMap<String, String>,
    #[serde(default)]
    body: Value,
    /// The body, if it is not JSON.
    raw: Option<String>,
    /// Milliseconds that pass before the request.
    #[serde(default)]
    after: u64,
    /// Milliseconds by which the wall clock is set forwards or back before the request.
    #[serde(default)]
    set_clock: i64,
    /// Whether the runtime's time is paused from here to the end of the step.
    #[serde(default)]
    still: bool,
    /// The number of clients that send this at once. The upstreams' gates open when all but one of
    /// them wait for another's fetch.
    #[serde(default)]
    clients: usize,
}

fn post() -> String {
    "POST".into()
}

fn metric() -> String {
    "/api/metric".into()
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Expected {
    #[serde(default = "ok")]
    status: u16,
    /// `null`: the header is absent.
    #[serde(default)]
    headers: BTreeMap<String, Option<String>>,
    /// The whole body.
    body: Option<Value>,
    /// Texts that the body contains.
    #[serde(default)]
    holds: Vec<String>,
    /// Members that each upstream's requests have, for all requests of this step.
    #[serde(default)]
    upstream: Value,
    #[serde(default)]
    metrics: BTreeMap<String, f64>,
}

fn ok() -> u16 {
    200
}

/// A case with everything that runs for it.
struct Case {
    upstreams: BTreeMap<String, (String, Scripted)>,
    clock: Arc<TestClock>,
    server: Server,
    stuck_for: Duration,
}

#[tokio::test(flavor = "multi_thread")]
async fn every_case_holds() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/cases");
    // Part of a name, to run some of the cases: set when the tests are built.
    let wanted = option_env!("CASE").unwrap_or_default();
    // Only a few at a time: some cases have time-outs, which must not expire for lack of CPU time.
    let turns = Arc::new(Semaphore::new(8));
    let mut running = Vec::new();
    for entry in std::fs::read_dir(root).unwrap() {
        let folder = entry.unwrap();
        let name = folder.file_name().into_string().unwrap();
        if folder.path().is_dir() && name.contains(wanted) {
            let (turns, folder, named) = (turns.clone(), folder.path(), name.clone());
            let case = tokio::spawn(async move {
                let _turn = turns.acquire().await.unwrap();
                // Each case has a single-threaded runtime, whose time can be paused and advanced.
                let case = tokio::task::spawn_blocking(|| {
                    let mut runtime = tokio::runtime::Builder::new_current_thread();
                    let runtime = runtime.enable_all().build().unwrap();
                    runtime.block_on(run(folder, named))
                });
                case.await.unwrap()
            });
            running.push((name, case));
        }
    }
    let count = running.len();
    let mut failures = Vec::new();
    for (name, case) in running {
        match case.await {
            Ok(Ok(())) => {}
            Ok(Err(message)) => failures.push(format!("{name}: {message}")),
            Err(panic) => failures.push(format!("{name}: {panic}")),
        }
    }
    failures.sort();
    assert!(
        failures.is_empty(),
        "{} of {count} cases fail:\n{}",
        failures.len(),
        failures.join("\n")
    );
    assert!(count > 0, "there is no case {wanted:?}");
}

/// Pauses the runtime's time until dropped.
struct Still {
    _end: std::sync::mpsc::Sender<()>,
}

impl Still {
    fn begin() -> Self {
        tokio::time::pause();
        // Paused time advances when the runtime is idle, but not while a task blocks.
        let (_end, ended) = std::sync::mpsc::channel::<()>();
        tokio::task::spawn_blocking(move || ended.recv());
        Self { _end }
    }
}

impl Drop for Still {
    fn drop(&mut self) {
        tokio::time::resume();
    }
}

/// The JSON of one file of a case.
fn file(folder: &Path, name: &str) -> Result<Value, String> {
    let text = std::fs::read_to_string(folder.join(name)).map_err(|e| format!("{name}: {e}"))?;
    serde_json::from_str(&text).map_err(|e| format!("{name}: {e}"))
}

async fn run(folder: std::path::PathBuf, name: String) -> Result<(), String> {
    let read = |file: &str, e| format!("{file}: {e}");
    let clock = TestClock::at(NOW);
    let mut upstreams = BTreeMap::new();
    let scripts = match file(&folder, "upstream.json")? {
        Value::Object(scripts) => scripts,
        only => Map::from_iter([("up".to_owned(), only)]),
    };
    // The scripts are set after the addresses, which they may contain.
    let answers: Arc<OnceLock<BTreeMap<String, Vec<Answer>>>> = Arc::default();
    for key in scripts.keys() {
        let (all, mine) = (answers.clone(), key.clone());
        let script = move |n, _: &Seen| all.get().unwrap()[&mine].get(n).cloned();
        let scripted = Scripted::start(clock.clone(), move |n, seen| {
            script(n, seen).unwrap_or_else(Answer::beyond_the_script)
        });
        upstreams.insert(key.clone(), (format!("{name}.{key}"), scripted.await));
    }
    let scripts = filled(&Value::Object(scripts), &upstreams);
    let scripts = serde_json::from_value(scripts).map_err(|e| read("upstream.json", e))?;
    let scripts = answers.get_or_init(|| scripts);
    let request = filled(&file(&folder, "request.json")?, &upstreams);
    let request: Request = serde_json::from_value(request).map_err(|e| read("request.json", e))?;
    let expected = filled(&file(&folder, "expected.json")?, &upstreams);
    let expected: Vec<Expected> =
        serde_json::from_value(expected).map_err(|e| read("expected.json", e))?;
    if request.steps.len() != expected.len() {
        return Err("request.json and expected.json differ in their number of steps".into());
    }
    let toml = configuration(&request.config, &upstreams);
    let server = Server::start_at(&toml, clock.clone()).await;
    let case = Case {
        upstreams,
        clock,
        server,
        stuck_for: Duration::from_millis(request.stuck_for),
    };
    let mut before = BTreeMap::new();
    let mut still: Option<Still> = None;
    for (n, (step, expected)) in request.steps.iter().zip(&expected).enumerate() {
        still = match step.still {
            true => still.or_else(|| Some(Still::begin())),
            false => None,
        };
        let replies = case.ask(step).await;
        for reply in &replies {
            let checked = check(reply, step, expected);
            let seen = || {
                let all = case.upstreams.values().flat_map(|(_, u)| u.seen());
                all.map(|s| format!("\n    asked {} {}", s.path, s.json()))
                    .collect::<String>()
            };
            checked.map_err(|e| format!("step {n}: {e}\n    in {}{}", reply.text, seen()))?;
        }
        case.check_upstreams(expected, &mut before)
            .map_err(|e| format!("step {n}: {e}"))?;
        if expected.metrics.is_empty() {
            continue;
        }
        let metrics = case.server.get("/metrics").await.text;
        for (series, value) in &expected.metrics {
            let found = metric_in(&metrics, series);
            if found != *value {
                return Err(format!("step {n}: {series} is {found}, not {value}"));
            }
        }
    }
    for (key, (_, scripted)) in &case.upstreams {
        let (asked, script) = (scripted.seen().len(), &scripts[key]);
        // Without an answer the request may have ended before it was sent.
        let needed = script.iter().filter(|a| a.fault != Fault::Hang).count();
        if asked < needed || asked > script.len() {
            let scripted = script.len();
            return Err(format!("{key} was asked {asked} times, not {scripted}"));
        }
    }
    Ok(())
}

/// Returns `value` with `${up.url}`, `${up.port}` and `${up.name}` filled in. A text that consists
/// only of a port becomes a number.
fn filled(value: &Value, upstreams: &BTreeMap<String, (String, Scripted)>) -> Value {
    match value {
        Value::String(text) => {
            let mut text = text.clone();
            for (key, (name, scripted)) in upstreams {
                if text == format!("${{{key}.port}}") {
                    return scripted.port.into();
                }
                text = text
                    .replace(&format!("${{{key}.url}}"), &scripted.url)
                    .replace(&format!("${{{key}.port}}"), &scripted.port.to_string())
                    .replace(&format!("${{{key}.name}}"), name);
            }
            text.into()
        }
        Value::Array(items) => items.iter().map(|i| filled(i, upstreams)).collect(),
        Value::Object(members) => {
            let fill = |(k, v): (&String, &Value)| {
                let key = filled(&Value::from(k.as_str()), upstreams);
                (key.as_str().unwrap().to_owned(), filled(v, upstreams))
            };
            Value::Object(members.iter().map(fill).collect())
        }
        other => other.clone(),
    }
}

/// Returns the configuration: the settings of the case and, for each upstream, a name, a kind, an
/// address, and no retries unless the case sets them. An upstream that is `false` is only a server.
fn configuration(
    config: &Map<String, Value>,
    upstreams: &BTreeMap<String, (String, Scripted)>,
) -> String {
    let mut text = String::new();
    for section in ["server", "targets"] {
        if let Some(keys) = config.get(section) {
            text += &format!("[{section}]\n{}", lines(keys));
        }
    }
    // The first is the default upstream: `up` if it exists.
    let (first, others) = upstreams
        .iter()
        .partition::<Vec<_>, _>(|(key, _)| *key == "up");
    for (key, (name, scripted)) in first.into_iter().chain(others) {
        let mut keys = json!({
            "name": name, "kind": "mirror", "urls": [scripted.url], "retries": 0,
        });
        match config.get(key) {
            Some(Value::Bool(false)) => continue,
            Some(Value::Object(own)) => keys.as_object_mut().unwrap().extend(own.clone()),
            _ => {}
        }
        text += &format!("[[upstream]]\n{}", lines(&keys));
    }
    text
}

fn lines(section: &Value) -> String {
    let members = section.as_object().unwrap();
    let line = |(key, value): (&String, &Value)| format!("{key} = {}\n", toml(value));
    members.iter().map(line).collect()
}

/// Returns `value` as TOML.
fn toml(value: &Value) -> String {
    match value {
        Value::Object(members) => {
            let member = |(k, v): (&String, &Value)| format!("{k:?} = {}", toml(v));
            let members: Vec<_> = members.iter().map(member).collect();
            format!("{{ {} }}", members.join(", "))
        }
        other => other.to_string(),
    }
}

impl Case {
    async fn ask(&self, step: &Step) -> Vec<Reply> {
        self.clock.pass(step.after);
        self.clock.step(step.set_clock);
        if !self.stuck_for.is_zero() {
            return vec![tokio::select! {
                reply = self.server.reply(self.request(step)) => reply,
                () = self.pass_when_stuck() => unreachable!(),
            }];
        }
        if step.clients == 0 {
            return vec![self.server.reply(self.request(step)).await];
        }
        let coalesced = || async {
            let mut all = 0.0;
            for (name, _) in self.upstreams.values() {
                let series = format!("heliostat_coalesced_requests_total{{upstream=\"{name}\"}}");
                all += self.server.metric(&series).await;
            }
            all
        };
        let before = coalesced().await;
        let clients = (0..step.clients).map(|_| self.server.reply(self.request(step)));
        let open = async {
            let mut patience = 2_000;
            while coalesced().await < before + (step.clients - 1) as f64 {
                patience -= 1;
                assert!(patience > 0, "the clients do not share one fetch");
                // Reading all metrics takes long, and other cases wait for their turn.
                tokio::time::sleep(Duration::from_millis(5)).await;
            }
            for (_, scripted) in self.upstreams.values() {
                scripted.open();
            }
        };
        let (replies, ()) = tokio::join!(futures_util::future::join_all(clients), open);
        replies
    }

    /// Advances the runtime's time whenever an upstream is stuck.
    async fn pass_when_stuck(&self) {
        let stuck = || self.upstreams.values().map(|(_, u)| u.stuck()).sum();
        let mut passed: usize = stuck();
        loop {
            while stuck() == passed {
                tokio::time::sleep(Duration::from_millis(1)).await;
            }
            passed += 1;
            tokio::time::pause();
            tokio::time::advance(self.stuck_for).await;
            tokio::time::resume();
        }
    }

    fn request(&self, step: &Step) -> reqwest::RequestBuilder {
        let url = format!("{}{}", self.server.url, step.path);
        let method = step.method.parse().unwrap();
        let mut request = self.server.client().request(method, url);
        if !step.headers.contains_key("content-type") && step.method == "POST" {
            request = request.header("content-type", "application/json");
        }
        for (name, value) in &step.headers {
            request = request.header(name, value);
        }
        match &step.raw {
            Some(raw) => request.body(raw.clone()),
            None if step.body.is_null() => request,
            None => request.body(step.body.to_string()),
        }
    }

    /// Compares the requests to the upstreams since `before` with the expected ones.
    fn check_upstreams(
        &self,
        expected: &Expected,
        before: &mut BTreeMap<String, usize>,
    ) -> Result<(), String> {
        let nothing = json!([]);
        for (key, (_, scripted)) in &self.upstreams {
            let seen: Vec<Seen> = scripted.seen();
            let start = before.insert(key.clone(), seen.len()).unwrap_or(0);
            let seen = seen[start..].iter().map(|s| {
                json!({ "method": s.method, "path": s.path, "headers": s.headers, "body": s.json() })
            });
            let seen = Value::Array(seen.collect());
            let wanted = match &expected.upstream {
                Value::Null => continue,
                Value::Object(each) => each.get(key).unwrap_or(&nothing),
                list => list,
            };
            if let Some(difference) = differs(wanted, &seen, false, key) {
                return Err(format!("{difference}\n    in {seen}"));
            }
        }
        Ok(())
    }
}

fn check(reply: &Reply, step: &Step, expected: &Expected) -> Result<(), String> {
    if reply.status != expected.status {
        return Err(format!("status {}, not {}", reply.status, expected.status));
    }
    if reply.header("x-mirror-api-key").is_empty() {
        return Err("there is no X-MIRROR-API-KEY".into());
    }
    let json = reply.header("content-type") == "application/json";
    if step.path.contains("/api/") && !json {
        return Err("the answer is not declared as JSON".into());
    }
    for (name, wanted) in &expected.headers {
        let found = reply.headers.get(name).map(|v| v.to_str().unwrap());
        let fits = match (wanted, found) {
            (Some(wanted), Some(found)) => fits(wanted, found),
            (None, None) => true,
            _ => false,
        };
        if !fits {
            return Err(format!("{name} is {found:?}, not {wanted:?}"));
        }
    }
    if let Some(body) = &expected.body {
        let found = serde_json::from_str(&reply.text).map_err(|e| e.to_string())?;
        if let Some(difference) = differs(body, &found, true, "body") {
            return Err(difference);
        }
    }
    let missing = expected.holds.iter().find(|t| !reply.text.contains(*t));
    missing.map_or(Ok(()), |text| {
        Err(format!("the body does not hold {text:?}"))
    })
}

/// Returns whether `found` matches `wanted`, in which `…` stands for any text.
pub(crate) fn fits(wanted: &str, found: &str) -> bool {
    let mut parts = wanted.split(ANY);
    let first = parts.next().unwrap_or_default();
    let Some(mut rest) = found.strip_prefix(first) else {
        return false;
    };
    let mut parts: Vec<&str> = parts.collect();
    let Some(last) = parts.pop() else {
        return rest.is_empty();
    };
    for part in parts {
        match rest.find(part) {
            Some(at) => rest = &rest[at + part.len()..],
            None => return false,
        }
    }
    rest.ends_with(last)
}

/// Returns where `found` differs from `wanted`. Unless the `whole` is compared, objects may have
/// more members, and `null` stands for an absent one.
fn differs(wanted: &Value, found: &Value, whole: bool, path: &str) -> Option<String> {
    let below = |w: &Value, f: &Value, step: String| differs(w, f, whole, &format!("{path}{step}"));
    match (wanted, found) {
        (Value::Object(w), Value::Object(f)) => {
            let absent = |k: &&String| !f.contains_key(*k) && (whole || !w[*k].is_null());
            if let Some(key) = w.keys().find(absent) {
                return Some(format!("{path}.{key} is absent"));
            }
            let other = f.keys().find(|k| whole && !w.contains_key(*k));
            if let Some(key) = other {
                return Some(format!("{path}.{key} is not expected"));
            }
            w.iter()
                .filter_map(|(k, v)| Some((k, v, f.get(k)?)))
                .find_map(|(k, w, f)| below(w, f, format!(".{k}")))
        }
        (Value::Array(w), Value::Array(f)) if w.len() == f.len() => {
            let mut pairs = w.iter().zip(f).enumerate();
            pairs.find_map(|(i, (w, f))| below(w, f, format!("[{i}]")))
        }
        (Value::String(w), Value::String(f)) if fits(w, f) => None,
        (Value::Number(w), Value::Number(f)) if w.as_f64() == f.as_f64() => None,
        (w, f) if w == f => None,
        (w, f) => Some(format!("{path} is {f}, not {w}")),
    }
}

#[test]
fn differences_are_found() {
    let whole = |w: Value, f: Value| differs(&w, &f, true, "$");
    let part = |w: Value, f: Value| differs(&w, &f, false, "$");
    assert_eq!(
        whole(json!({"a": [1, "x…z"]}), json!({"a": [1.0, "xyz"]})),
        None
    );
    assert!(whole(json!({"a": 1}), json!({"a": 1, "b": 2})).is_some());
    assert!(whole(json!({"a": null}), json!({})).is_some());
    assert!(whole(json!([1]), json!([1, 2])).is_some());
    assert!(whole(json!(1), json!("1")).is_some());
    assert_eq!(
        part(json!({"a": 1, "c": null}), json!({"a": 1, "b": 2})),
        None
    );
    assert!(part(json!({"a": null}), json!({"a": 1})).is_some());
    assert!(part(json!({"a": {"b": 1}}), json!({"a": {"b": 2}})).is_some());
    assert!(fits("…b", "ab") && !fits("…b", "ba") && !fits("a", "ab") && fits("…", ""));
}
