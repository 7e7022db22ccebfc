//! Third-party clients of the Prometheus API, used with Heliostat.

use std::process::Command;

use crate::prometheus::{Store, installed};
use crate::prometheus_api::{LENGTH, MINUTE, START, data};
use crate::relay::Relay;
use crate::remote_write::{fresh, write};
use crate::support::{Server, TestClock};

/// Returns both outputs of `promtool query`, and whether it succeeded.
async fn promtool(arguments: Vec<String>) -> (bool, String) {
    let run = tokio::task::spawn_blocking(move || {
        let mut command = Command::new("promtool");
        command.arg("query").args(arguments).output().unwrap()
    });
    let done = run.await.unwrap();
    let said = [done.stdout, done.stderr].concat();
    (done.status.success(), String::from_utf8(said).unwrap())
}

/// A store with data, and a Heliostat in front of it.
struct Both {
    store: Store,
    relay: Relay,
    server: Server,
}

impl Both {
    async fn start(name: &str) -> Option<Self> {
        let store = fresh().await?;
        let all = data();
        for n in 0..=LENGTH / MINUTE / 10 {
            let from = START + n * 10 * MINUTE;
            write(&store, &all, from, from + 10 * MINUTE).await;
        }
        let clock = TestClock::at(START + LENGTH + 60 * MINUTE);
        let relay = Relay::to(&store.url, clock.clone()).await;
        let config = format!(
            "[[upstream]]\nname = \"{name}\"\nkind = \"prometheus\"\nurls = [\"{}\"]\ndefault = true\n",
            relay.upstream.url
        );
        let server = Server::start_at(&config, clock).await;
        Some(Self {
            store,
            relay,
            server,
        })
    }
}

/// Returns the output of `program` with `arguments`, which has to succeed.
async fn output(program: &'static str, arguments: Vec<String>) -> String {
    let run = move || Command::new(program).args(arguments).output().unwrap();
    let done = tokio::task::spawn_blocking(run).await.unwrap();
    let said = String::from_utf8_lossy(&done.stderr).into_owned();
    assert!(done.status.success(), "{said}");
    String::from_utf8(done.stdout).unwrap()
}

#[tokio::test(flavor = "multi_thread")]
async fn the_python_client_gets_the_same_from_both() {
    let probe = ["-c", "import prometheus_api_client"];
    let found = Command::new("python3").args(probe).output();
    if !found.is_ok_and(|found| found.status.success()) {
        let required = std::env::var_os("HELIOSTAT_REQUIRE_REAL").is_some_and(|v| v == "1");
        assert!(!required, "the package prometheus-api-client is required");
        println!("SKIPPED: the package prometheus-api-client is not installed");
        return;
    }
    let Some(both) = Both::start("python-client").await else {
        return;
    };
    let script = concat!(
        env!("CARGO_MANIFEST_DIR"),
        "/tests/clients/python_client.py"
    );
    let ask = async |url: &str| output("python3", vec![script.to_owned(), url.to_owned()]).await;
    let direct = ask(&both.store.url).await;
    assert_eq!(direct.lines().count(), 2, "{direct}");
    for base in ["", "/prometheus/python-client"] {
        let face = ask(&format!("{}{base}", both.server.url)).await;
        assert_eq!(face, direct, "{base}");
    }
    let asked = both.relay.upstream.seen().len();
    assert!((10..=40).contains(&asked), "{asked} requests went on");
}

#[tokio::test(flavor = "multi_thread")]
async fn promtool_gets_the_same_from_both() {
    if !installed("promtool") {
        return;
    }
    let Some(Both {
        store,
        relay,
        server,
    }) = Both::start("promtool").await
    else {
        return;
    };
    let (start, end) = ("--start=1700000000", "--end=2023-11-15T00:13:20Z");
    let questions: &[&[&str]] = &[
        &["range", start, end, "--step=15s", "URL", "g"],
        &["range", start, end, "--step=15s", "URL", "g"],
        &[
            "range",
            start,
            end,
            "--step=1m",
            "URL",
            "sum by (host) (rate(c_total[5m]))",
        ],
        &["range", "-o", "json", start, end, "--step=7s", "URL", "odd"],
        &[
            "range",
            "-o",
            "json",
            start,
            end,
            "--step=15s",
            "URL",
            "wild",
        ],
        &["range", "-o", "json", start, end, "--step=90s", "URL", "nh"],
        &["range", start, end, "--step=15s", "URL", "g @ end()"],
        &["range", start, end, "--step=15s", "URL", "rate(g)"],
        &["range", start, end, "--step=1ms", "URL", "g"],
        &["instant", "--time=1700003600", "URL", "g"],
        &["instant", "--time=1700003600.5", "URL", "sum(c_total)"],
        &["instant", "-o", "json", "--time=1700003600", "URL", "g[2m]"],
        &["instant", "--time=1700003600", "URL", "time()"],
        &["instant", "--time=1700003600", "URL", "sum("],
        &["labels", start, end, "URL", "host"],
        &["labels", start, end, "URL", "__name__"],
        &["labels", start, end, "--match=g", "URL", "host"],
        &[
            "series",
            "--match=c_total{code=\"500\"}",
            "--match=g",
            start,
            end,
            "URL",
        ],
        &["series", "--match={", start, end, "URL"],
    ];
    for question in questions {
        let ask = async |url: &str| {
            let arguments = question.iter().map(|a| a.replace("URL", url)).collect();
            let (good, said) = promtool(arguments).await;
            // An error contains the address.
            (good, said.replace(url, "URL"))
        };
        let direct = ask(&store.url).await;
        for base in ["", "/prometheus/promtool"] {
            let face = ask(&format!("{}{base}", server.url)).await;
            assert_eq!(face, direct, "{question:?} {base}");
        }
    }
    let asked = relay.upstream.seen().len();
    assert!(asked >= 10, "{asked} requests went on");
}
