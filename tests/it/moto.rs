//! moto, a simulation of AWS that checks signatures, if it is installed.

use std::process::{Command, Output};

use serde_json::{Value, json};

use crate::aws::{python, run};
use crate::cloudwatch::{ask, equals, query, read};
use crate::cloudwatch_store::{HOUR, MINUTE, metric_of};
use crate::prometheus::free_port;
use crate::support::Server;
use heliostat::clock::{Clock, SystemClock};

/// Creates a user, a role and metrics; prints the user's key. moto counts calls without a
/// signature; these five are the only ones.
const SETUP: &str = r#"
import boto3, json, sys
from botocore.config import Config
url, end = sys.argv[1], int(sys.argv[2])
def client(name, key="x", secret="x"):
    # moto does not read what boto3 compresses.
    config = Config(disable_request_compression=True, region_name="eu-west-1")
    return boto3.client(name, endpoint_url=url, config=config, aws_access_key_id=key, aws_secret_access_key=secret)
iam = client("iam")
allow = json.dumps({"Version": "2012-10-17", "Statement": [{"Effect": "Allow", "Action": "*", "Resource": "*"}]})
iam.create_user(UserName="reader")
key = iam.create_access_key(UserName="reader")["AccessKey"]
iam.put_user_policy(UserName="reader", PolicyName="all", PolicyDocument=allow)
trust = json.dumps({"Version": "2012-10-17", "Statement": [{"Effect": "Allow", "Principal": {"AWS": "*"}, "Action": "sts:AssumeRole"}]})
role = iam.create_role(RoleName="reader", AssumeRolePolicyDocument=trust)["Role"]["Arn"]
iam.put_role_policy(RoleName="reader", PolicyName="all", PolicyDocument=allow)
cw = client("cloudwatch", key["AccessKeyId"], key["SecretAccessKey"])
one = lambda name, dims, t, v: {"MetricName": name, "Dimensions": [{"Name": n, "Value": x} for n, x in dims], "Timestamp": t, "Value": v}
for first in range(0, 600, 20):
    cw.put_metric_data(Namespace="Heliostat", MetricData=[one("Many", [("Host", "h%03d" % n)], end - 600, 1) for n in range(first, first + 20)])
points = [one("Load", [("Host", "a")], end - 3600 + 20 * n, (n * 37) % 101) for n in range(180)]
for first in range(0, 180, 20):
    cw.put_metric_data(Namespace="Heliostat", MetricData=points[first:first + 20])
print(json.dumps({"key": key["AccessKeyId"], "secret": key["SecretAccessKey"], "role": role}))
"#;

fn installed() -> bool {
    let found = Command::new("moto_server").arg("--help").output();
    if found.is_ok_and(|Output { status, .. }| status.success()) {
        return true;
    }
    let required = std::env::var_os("HELIOSTAT_REQUIRE_REAL").is_some_and(|v| v == "1");
    assert!(!required, "moto_server is not installed, and is required");
    println!("SKIPPED: moto_server is not installed");
    false
}

#[tokio::test(flavor = "multi_thread")]
async fn moto_takes_our_calls_and_signatures() {
    let (true, Some(python)) = (installed(), python()) else {
        return;
    };
    let port = free_port();
    let url = format!("http://127.0.0.1:{port}");
    let mut moto = Command::new("moto_server");
    moto.args(["-p", &port.to_string()])
        .env("INITIAL_NO_AUTH_ACTION_COUNT", "5");
    let _moto = run(&mut moto, &format!("{url}/moto-api/")).await;
    let now = SystemClock::default().now();
    let end = now - now % MINUTE - 20 * MINUTE;
    let setup = Command::new(python)
        .args(["-c", SETUP, &url, &(end / 1000).to_string()])
        .output()
        .unwrap();
    let said = String::from_utf8_lossy(&setup.stderr);
    assert!(setup.status.success(), "{said}");
    let made: Value = serde_json::from_slice(&setup.stdout).unwrap();
    let section = |name: &str, key: &Value, secret: &Value, more: &str| {
        format!(
            "[[upstream]]\nname = {name:?}\nkind = \"cloudwatch\"\nurls = [{url:?}]\naws = {{ region = \"eu-west-1\", access_key = {key}, secret_key = {secret}{more} }}\nretries = 0\n"
        )
    };
    let (key, secret) = (&made["key"], &made["secret"]);
    let role = format!(", role = {}, sts_url = {url:?}", made["role"]);
    let metric = metric_of("Heliostat", "Load", &[("Host", "a")]);
    let values: Vec<f64> = (0..180).map(|n| f64::from(n * 37 % 101)).collect();
    for (name, more) in [("moto", ""), ("moto-role", &*role)] {
        let server = Server::start(&section(name, key, secret, more)).await;
        let body = json!({ "connectionDetails": {} });
        let reply = server.post("/api/connection", &body).await;
        assert!(reply.text.contains("\"OK\""), "{name}: {}", reply.text);
        let range = (end - HOUR, end);
        for (method, of) in [
            ("SUM", (|v: &[f64]| v.iter().sum()) as fn(&[f64]) -> f64),
            ("MEAN", |v| v.iter().sum::<f64>() / v.len() as f64),
            ("EVENT_COUNT", |v| v.len() as f64),
            ("MAX", |v| v.iter().copied().fold(f64::MIN, f64::max)),
            ("MIN", |v| v.iter().copied().fold(f64::MAX, f64::min)),
        ] {
            for minutes in [1, 5, 30] {
                let buckets = Some((method, minutes * MINUTE));
                let reply = ask(&server, &query(&metric, range, buckets)).await;
                let got: Vec<f64> = read(&reply).iter().map(|p| p.1).collect();
                // The hour need not begin at a bucket's start.
                let first = (end - HOUR).rem_euclid(minutes * MINUTE) / (20 * 1000);
                let width = (3 * minutes) as usize;
                let lead = (width - first as usize) % width;
                let (head, rest) = values.split_at(lead);
                let heads = (!head.is_empty()).then_some(head).into_iter();
                let expected: Vec<f64> = heads.chain(rest.chunks(width)).map(of).collect();
                assert_eq!(got.len(), expected.len(), "{method} {minutes}");
                for (g, e) in got.iter().zip(&expected) {
                    assert!(
                        (g - e).abs() < 1e-9,
                        "{method} {minutes}: {got:?} {expected:?}"
                    );
                }
            }
        }
        let hosts = json!({ "connectionDetails": {}, "query": {
            "_type": "FieldValuesQuery", "field": { "fieldName": "Host", "fieldType": "STRING" },
            "conditions": [equals("Namespace", "Heliostat"), equals("MetricName", "Many")],
            "prefix": "", "offset": 0, "limit": 1000,
        }});
        let reply = server.post("/api/field/value", &hosts).await;
        let listed: Value = serde_json::from_str(&reply.text).unwrap();
        assert_eq!(listed["values"].as_array().unwrap().len(), 600, "{name}");
    }
    for (name, key, secret, expected) in [
        ("moto-wrong", key, &json!("wrong"), "SignatureDoesNotMatch"),
        (
            "moto-unknown",
            &json!("AKIAUNKNOWNUNKNOWN00"),
            secret,
            "InvalidClientTokenId",
        ),
    ] {
        let server = Server::start(&section(name, key, secret, "")).await;
        let reply = ask(&server, &query(&metric, (end - HOUR, end), None)).await;
        assert_eq!(reply.status, 502, "{}", reply.text);
        assert!(reply.text.contains(expected), "{}", reply.text);
        assert!(!reply.text.contains(made["secret"].as_str().unwrap()));
    }
}
