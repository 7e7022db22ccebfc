//! Compares the API description with the code and with the cases.

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;

use heliostat::wire::mirror::request::method_names;
use serde_json::{Value, json};

use crate::support::{ADMIN, ADMIN_TOKEN, Server};

fn document() -> Value {
    serde_json::from_str(include_str!("../../src/front/openapi.json")).unwrap()
}

/// Returns why `value` does not match `schema`, if it does not. Unknown keywords fail the test, so
/// that nothing counts as checked that is not.
fn fault(document: &Value, schema: &Value, value: &Value) -> Option<String> {
    let keywords = schema.as_object().unwrap();
    let number = |v: &Value| v.as_f64().unwrap();
    let is = |name: &str| match name {
        "null" => value.is_null(),
        "boolean" => value.is_boolean(),
        "string" => value.is_string(),
        "number" => value.is_number(),
        "integer" => value.as_f64().is_some_and(|n| n.fract() == 0.0),
        "array" => value.is_array(),
        "object" => value.is_object(),
        other => panic!("unknown type {other}"),
    };
    for (keyword, said) in keywords {
        let held = match keyword.as_str() {
            "description" => true,
            "$ref" => {
                let at = said.as_str().unwrap().strip_prefix('#').unwrap();
                let found = fault(document, document.pointer(at).unwrap(), value);
                if found.is_some() {
                    return found;
                }
                true
            }
            "type" => match said {
                Value::String(name) => is(name),
                names => names
                    .as_array()
                    .unwrap()
                    .iter()
                    .any(|n| is(n.as_str().unwrap())),
            },
            "const" => value == said,
            "enum" => said.as_array().unwrap().contains(value),
            "anyOf" => {
                let mut all = said.as_array().unwrap().iter();
                all.any(|s| fault(document, s, value).is_none())
            }
            "minimum" => value.as_f64().is_none_or(|n| n >= number(said)),
            "maximum" => value.as_f64().is_none_or(|n| n <= number(said)),
            "exclusiveMinimum" => value.as_f64().is_none_or(|n| n > number(said)),
            "minLength" => value
                .as_str()
                .is_none_or(|s| s.chars().count() as f64 >= number(said)),
            "pattern" => {
                assert_eq!(said, "^0*[1-9][0-9]*$");
                let digits = |s: &str| s.bytes().all(|b| b.is_ascii_digit());
                let positive = |s: &str| s.bytes().any(|b| b != b'0');
                value.as_str().is_none_or(|s| digits(s) && positive(s))
            }
            "minItems" => value
                .as_array()
                .is_none_or(|a| a.len() as f64 >= number(said)),
            "maxItems" => value
                .as_array()
                .is_none_or(|a| a.len() as f64 <= number(said)),
            "items" => {
                let found = value.as_array().into_iter().flatten();
                if let Some(found) = found
                    .map(|v| fault(document, said, v))
                    .find(Option::is_some)
                {
                    return found;
                }
                true
            }
            "required" => {
                let names = said.as_array().unwrap().iter();
                let mut names = names.map(|n| n.as_str().unwrap());
                value
                    .as_object()
                    .is_none_or(|o| names.all(|n| o.contains_key(n)))
            }
            "properties" => {
                for (name, schema) in said.as_object().unwrap() {
                    if let Some(found) = value.get(name).and_then(|v| fault(document, schema, v)) {
                        return Some(format!("{name}: {found}"));
                    }
                }
                true
            }
            "additionalProperties" => {
                assert_eq!(said, &json!(false));
                let known = keywords["properties"].as_object().unwrap();
                value
                    .as_object()
                    .is_none_or(|o| o.keys().all(|k| known.contains_key(k)))
            }
            other => panic!("unknown keyword {other}"),
        };
        if !held {
            return Some(format!("{keyword} {said} does not hold of {value}"));
        }
    }
    None
}

fn request_schema(operation: &Value) -> &Value {
    &operation["requestBody"]["content"]["application/json"]["schema"]
}

/// Returns the schema of the body that `operation` answers with `status`.
fn response_schema<'a>(
    document: &'a Value,
    operation: &'a Value,
    status: &str,
) -> Option<&'a Value> {
    let response = operation["responses"].get(status)?;
    let response = match response["$ref"].as_str() {
        Some(at) => document.pointer(at.strip_prefix('#').unwrap()).unwrap(),
        None => response,
    };
    Some(&response["content"]["application/json"]["schema"])
}

#[test]
fn the_aggregation_methods_are_those_that_are_read() {
    let document = document();
    let described = document["components"]["schemas"]["AggregationMethod"]["enum"].as_array();
    let described: Vec<_> = described
        .unwrap()
        .iter()
        .map(|n| n.as_str().unwrap())
        .collect();
    assert_eq!(described.join(", "), method_names());
}

#[test]
fn every_case_is_as_described() {
    let document = document();
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/cases");
    let read = |path: &Path| -> Value {
        serde_json::from_str(&std::fs::read_to_string(path).unwrap()).unwrap()
    };
    let mut checked: BTreeMap<String, usize> = BTreeMap::new();
    let mut wrong = Vec::new();
    for folder in std::fs::read_dir(root).unwrap() {
        let folder = folder.unwrap().path();
        if !folder.is_dir() {
            continue;
        }
        let name = folder.file_name().unwrap().to_string_lossy().into_owned();
        let steps = read(&folder.join("request.json"))["steps"].take();
        let expected = read(&folder.join("expected.json"));
        let pairs = steps
            .as_array()
            .unwrap()
            .iter()
            .zip(expected.as_array().unwrap());
        for (n, (step, expected)) in pairs.enumerate() {
            let path = step["path"].as_str().unwrap_or("/api/metric");
            let Some(operation) = document["paths"].get(path).and_then(|p| p.get("post")) else {
                continue;
            };
            let status = expected["status"].as_u64().unwrap_or(200).to_string();
            *checked.entry(format!("{path} {status}")).or_default() += 1;
            let Some(schema) = response_schema(&document, operation, &status) else {
                wrong.push(format!("{name}, step {n}: {path} may not answer {status}"));
                continue;
            };
            if let Some(body) = expected.get("body").filter(|b| !b.is_null())
                && let Some(fault) = fault(&document, schema, body)
            {
                wrong.push(format!("{name}, step {n}: {path} {status}: {fault}"));
            }
            let mut asked = step["body"].clone();
            if let Some(Value::String(method)) = asked.pointer_mut("/query/aggregation/method") {
                method.make_ascii_uppercase();
            }
            if status == "200"
                && step["raw"].is_null()
                && let Some(fault) = fault(&document, request_schema(operation), &asked)
            {
                wrong.push(format!("{name}, step {n}: {path}: {fault}"));
            }
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
    // The comparison is not empty.
    for path in ["connection", "field/name", "field/value", "metric"] {
        let key = format!("/api/{path} 200");
        assert!(checked.contains_key(&key), "no case of {key}: {checked:?}");
    }
}

#[test]
fn the_description_rejects_wrong_requests() {
    let document = document();
    let operation = &document["paths"]["/api/metric"]["post"];
    let schema = request_schema(operation);
    let good = &operation["requestBody"]["content"]["application/json"]["example"];
    assert_eq!(fault(&document, schema, good), None);
    for (at, bad) in [
        ("/query/startTime", json!(-1)),
        ("/query/startTime", json!("0")),
        ("/query/aggregation/method", json!("MEDIAN")),
        ("/query/aggregation/bucketSizeMillis", json!(0)),
        ("/query/conditions/0/key", json!("")),
        ("/query/conditions/0/value/_type", json!("IntValue")),
        ("/query/conditions/0/value/value", json!(7)),
        ("/query/conditions", json!({})),
        ("/connectionDetails", Value::Null),
    ] {
        let mut request = good.clone();
        *request.pointer_mut(at).unwrap() = bad;
        assert!(fault(&document, schema, &request).is_some(), "{at}");
    }
}

#[tokio::test]
async fn time_outs_are_read_as_described() {
    let demo = "[[upstream]]\nname = \"demo\"\nkind = \"demo\"\ndemo = { latency = \"1ms\" }";
    let server = Server::start(demo).await;
    let document = document();
    let operation = &document["paths"]["/api/field/name"]["post"];
    let example = &operation["requestBody"]["content"]["application/json"]["example"];
    let values = [
        (json!(60_000), true),
        (json!(60_000.5), true),
        (json!("60000"), true),
        (json!("0060000"), true),
        (Value::Null, true),
        (json!(0), false),
        (json!(-1), false),
        (json!(1e9), false),
        (json!("0"), false),
        (json!(""), false),
        (json!("-1"), false),
        (json!("60s"), false),
        (json!("6e4"), false),
        (json!(true), false),
        (json!([1]), false),
    ];
    for key in ["requestTimeout", "request_timeout_seconds"] {
        for (value, good) in &values {
            let mut asked = example.clone();
            asked["connectionDetails"][key] = value.clone();
            let described = fault(&document, request_schema(operation), &asked).is_none();
            let answer = server.post("/api/field/name", &asked).await;
            let read = (answer.status, described);
            let expected = if *good { (200, true) } else { (400, false) };
            assert_eq!(read, expected, "{key} = {value}: {}", answer.text);
        }
    }
}

#[tokio::test]
async fn the_description_is_served_and_its_examples_are_answered_as_it_says() {
    let server = Server::start(&format!(
        "{ADMIN}[[upstream]]\nname = \"demo\"\nkind = \"demo\"\ndemo = {{ latency = \"1ms\" }}"
    ))
    .await;
    let served = server.get("/openapi.json").await;
    assert_eq!(served.header("content-type"), "application/json");
    let document = document();
    assert_eq!(served.json(), document);
    assert_eq!(document["info"]["version"], env!("CARGO_PKG_VERSION"));
    let head = server.client().head(format!("{}/openapi.json", server.url));
    let head = server.reply(head).await;
    assert_eq!((head.status, head.text.as_str()), (200, ""));
    let mut seen = BTreeSet::new();
    for (path, methods) in document["paths"].as_object().unwrap() {
        // In reverse order, since a log level that nobody has set is unknown in a test.
        for (method, operation) in methods.as_object().unwrap().iter().rev() {
            let method = method.to_uppercase();
            let url = format!("{}{path}", server.url);
            let mut request = server.client().request(method.parse().unwrap(), url);
            request = request.bearer_auth(ADMIN_TOKEN);
            if let Some(body) = operation.get("requestBody") {
                let example = &body["content"]["application/json"]["example"];
                request = request
                    .header("content-type", "application/json")
                    .body(example.to_string());
            }
            let answer = server.reply(request).await;
            assert_eq!(answer.status, 200, "{method} {path}: {}", answer.text);
            let described = &operation["responses"]["200"];
            for name in described["headers"].as_object().unwrap().keys() {
                assert!(answer.headers.contains_key(name), "{path}: {name}");
            }
            seen.insert((method.clone(), path.clone()));
            if method == "HEAD" {
                continue;
            }
            let content = described["content"].as_object().unwrap();
            let kind = answer.header("content-type");
            let (_, described) = content
                .iter()
                .find(|(k, _)| kind.starts_with(k.as_str()))
                .unwrap_or_else(|| panic!("{path}: {kind}"));
            if kind == "application/json" && path != "/openapi.json" {
                let fault = fault(&document, &described["schema"], &answer.json());
                assert_eq!(fault, None, "{method} {path}");
            }
        }
    }
    let posts = seen.iter().filter(|(method, _)| method == "POST").count();
    assert_eq!((posts, seen.len()), (9, 30));
}
