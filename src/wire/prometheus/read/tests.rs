use super::*;
use crate::model::TimeRange;
use crate::wire::encoding::Encoding;
use crate::wire::prometheus::write_matrix;
use proptest::prelude::*;

const WIDE: TimeRange = TimeRange::ALL;

/// As Prometheus 2.42 writes it.
const ANSWER: &str = concat!(
    r#"{"status":"success","data":{"resultType":"matrix","result":["#,
    r#"{"metric":{"__name__":"a","x":"\"é\u003c,]}"},"values":[[1700000000,"1"],"#,
    r#"[1700000060.001,"NaN"],[1700000120,"+Inf"],[1700000180,"-1.5e-300"]]},"#,
    r#"{"metric":{"__name__":"h"},"values":[[0.5,"0"]],"histograms":[[1700000000,{"count":"5","#,
    r#""sum":"1.5","buckets":[[0,"-0.5","0.5","2"]]}],[1700000060,{"count":"6","sum":"\"]"}]]},"#,
    r#"{"metric":{"a":"1"},"histograms":[[1700000000,{"count":"5","sum":"1.5"}]]}"#,
    r#"],"stats":{"timings":{"evalTotalTime":1e-05}}},"warnings":["w [\"1\"]"],"infos":["i"]}"#
);

fn read(text: &str) -> Result<Matrix, Unread> {
    read_matrix(&Bytes::copy_from_slice(text.as_bytes()), 10)
}

fn written(matrix: &Matrix) -> String {
    let parts = Encoding::Identity.join(write_matrix(
        &[&matrix.series],
        &WIDE,
        &matrix.extras,
        Encoding::Identity,
    ));
    String::from_utf8(parts.concat()).unwrap()
}

#[test]
fn an_answer_is_written_as_it_was_read() {
    let matrix = read(ANSWER).unwrap();
    assert_eq!(written(&matrix), ANSWER);
    let first = &matrix.series[0];
    let labels = [("__name__", "a"), ("x", "\"é<,]}")];
    let labels = labels.map(|(n, v)| (n.to_owned(), v.to_owned()));
    assert_eq!(first.metric.labels, labels);
    assert_eq!(
        first.values.times(),
        [
            1_700_000_000_000,
            1_700_000_060_001,
            1_700_000_120_000,
            1_700_000_180_000
        ]
    );
    assert_eq!(first.values.slice(1..2), "[1700000060.001,\"NaN\"]");
    assert_eq!(first.values.slice(3..4), "[1700000180,\"-1.5e-300\"]");
    assert_eq!(matrix.series[1].values.times(), [500]);
    assert_eq!(matrix.series[1].histograms.len(), 2);
    assert_eq!(matrix.extras.get("infos").unwrap(), "[\"i\"]");
    assert!(matrix.extras.get("warnings").is_some());
    // The label has its own memory and does not keep the whole answer alive.
    let body = Bytes::from(ANSWER);
    let text = read_matrix(&body, 9).unwrap().series[0].metric.text.clone();
    assert!(!body.as_ptr_range().contains(&text.as_ptr()));
}

#[test]
fn white_space_and_order_of_members_do_not_matter() {
    let text = "\n{ \"isPartial\" : false, \"data\" : { \"result\" : [ { \"values\" : \
                [ [ 1700000000 , \"1\" ] , [ 1.7000000001e9, \"2\" ]\t,\n[1700000002,\"3\"] ] , \
                \"metric\" : {\"b\":\"\", \"a\" : \"1\"} } ], \"resultType\":\"matrix\" } , \
                \"status\":\"success\" } ";
    let matrix = read(text).unwrap();
    let values = &matrix.series[0].values;
    assert_eq!(
        values.times(),
        [1_700_000_000_000, 1_700_000_000_100, 1_700_000_002_000]
    );
    assert_eq!(
        values.slice(0..3),
        "[ 1700000000 , \"1\" ],[ 1.7000000001e9, \"2\" ],[1700000002,\"3\"]"
    );
    assert_eq!(values.slice(2..3), "[1700000002,\"3\"]");
    assert_eq!(matrix.extras.get("isPartial").unwrap(), "false");
    let mixed = "{\"status\":\"success\",\"data\":{\"resultType\":\"matrix\",\"result\":[{\"metric\"\
                 :{},\"values\":[[1,\"1\"],[2,\"2\"] ,[3,\"3\"],[4,\"4\"]]}]}}";
    let values = &read(mixed).unwrap().series[0].values;
    assert_eq!(
        values.slice(0..4),
        "[1,\"1\"],[2,\"2\"],[3,\"3\"],[4,\"4\"]"
    );
    assert_eq!(values.slice(3..4), "[4,\"4\"]");
}

#[test]
fn answers_that_are_not_a_matrix_are_reported() {
    let with = |result: &str| {
        format!(
            "{{\"status\":\"success\",\"data\":{{\"resultType\":\"matrix\",\"result\":{result}}}}}"
        )
    };
    let series = |n: usize| format!("{{\"metric\":{{\"n\":\"{n}\"}},\"values\":[[1,\"1\"]]}}");
    let many = |n: usize| {
        with(&format!(
            "[{}]",
            (0..n).map(series).collect::<Vec<_>>().join(",")
        ))
    };
    assert_eq!(read(&with("[]")).unwrap().series, []);
    assert!(read(&many(10)).is_ok());
    assert_eq!(read(&many(11)), Err(Unread::TooManySeries));
    let labels = |n: usize| (0..n).map(|n| format!("\"l{n}\":\"\"")).collect::<Vec<_>>();
    let labelled = |n: usize| {
        let labels = labels(n).join(",");
        with(&format!("[{{\"metric\":{{{labels}}},\"values\":[]}}]"))
    };
    assert_eq!(most_labels(10), 1320);
    assert!(read(&labelled(1320)).is_ok());
    assert_eq!(read(&labelled(1321)), Err(Unread::TooManyLabels));
    assert!(matches!(read(&labelled(4097)), Err(Unread::Malformed(_))));
    let members = |n: usize| {
        let members = labels(n).join(",");
        format!("{{{members},{}", &with("[]")[1..])
    };
    assert!(read(&members(64)).is_ok());
    assert!(matches!(read(&members(65)), Err(Unread::Malformed(_))));
    let twice = format!("[{},{}]", series(1), series(1));
    assert_eq!(read(&with(&twice)), Err(Unread::Disordered));
    let back = "[{\"metric\":{},\"values\":[[2,\"1\"],[1,\"1\"]]}]";
    assert_eq!(read(&with(back)), Err(Unread::Disordered));
    let again = "[{\"metric\":{},\"values\":[[2,\"1\"],[2,\"1\"]]}]";
    assert_eq!(read(&with(again)), Err(Unread::Disordered));
    let vector = "{\"status\":\"success\",\"data\":{\"resultType\":\"vector\",\"result\":[]}}";
    assert_eq!(read(vector), Err(Unread::NotAMatrix));
    let error = "{\"status\":\"error\",\"errorType\":\"bad_data\",\"error\":\"x\"}";
    assert_eq!(read(error), Err(Unread::NotAMatrix));
    let null = "{\"status\":\"success\",\"data\":null}";
    assert_eq!(read(null), Err(Unread::NotAMatrix));
    for text in [
        "",
        "null",
        "{}x",
        "<html>",
        &with("[]")[1..],
        &(with("[]") + "x"),
        &with("[{\"metric\":{\"a\":1}}]"),
        &with("[{\"values\":[]}]"),
        &with("[{\"metric\":{},\"odd\":1}]"),
        &with("[{\"metric\":{},\"values\":[[1,\"1\"],]}]"),
        &with("[{\"metric\":{},\"values\":[[1,\"1\"][2,\"1\"]]}]"),
        &with("[{\"metric\":{},\"values\":[[1]]}]"),
        &with("[{\"metric\":{},\"values\":[[1e300,\"1\"]]}]"),
        &with("[{\"metric\":{},\"values\":[[1,\"1\",2]]}]"),
        &with(&"[".repeat(100_000)),
    ] {
        assert!(
            matches!(read(text), Err(Unread::Malformed(_))),
            "{text:.80}"
        );
    }
    let deep = format!("{{\"x\":{}", "[".repeat(100_000));
    assert!(matches!(read(&deep), Err(Unread::Malformed(_))));
}

#[test]
fn series_are_put_in_the_order_of_labels() {
    let texts = [
        "{\"b\":\"1\"}",
        "{\"a\":\"2\"}",
        "{\"Z\":\"9\"}",
        "{\"a\":\"10\"}",
        "{}",
        "{\"a\":\"10\",\"b\":\"\"}",
    ];
    let series = texts.map(|t| format!("{{\"metric\":{t},\"values\":[[1,\"1\"]]}}"));
    let text = format!(
        "{{\"status\":\"success\",\"data\":{{\"resultType\":\"matrix\",\"result\":[{}]}}}}",
        series.join(",")
    );
    let matrix = read(&text).unwrap();
    let order: Vec<_> = matrix
        .series
        .iter()
        .map(|s| s.metric.text.clone())
        .collect();
    assert_eq!(
        order,
        ["{}", texts[2], texts[3], texts[5], texts[1], texts[0]]
    );
}

proptest! {
    #[test]
    fn any_bytes_are_read_without_a_panic(
        edits in prop::collection::vec((0..ANSWER.len(), any::<u8>(), 0..4u8), 1..6),
    ) {
        let mut bytes = ANSWER.as_bytes().to_vec();
        for (at, byte, what) in edits {
            let at = at.min(bytes.len() - 1);
            match what {
                0 => bytes[at] = byte,
                1 => bytes.truncate(at.max(1)),
                2 => { bytes.remove(at); }
                _ => bytes.insert(at, b"[]{}\",:"[usize::from(byte) % 7]),
            }
            if bytes.is_empty() { bytes.push(b'{'); }
        }
        if let Ok(matrix) = read_matrix(&bytes.into(), 10) {
            // Whatever can be read can be used.
            let _ = Encoding::Identity.join(write_matrix(&[&matrix.series], &WIDE, &matrix.extras, Encoding::Identity));
        }
    }

    #[test]
    fn the_fast_way_and_the_slow_way_agree(
        seconds in 0i64..99_999_999_999,
        millis in prop::option::of(0i64..1000),
        value in "[-+.0-9A-Za-z\\\\\"\\]]{0,20}",
    ) {
        let time = millis.map_or(format!("{seconds}"), |m| format!("{seconds}.{m:03}"));
        let text = format!("[{time},\"{value}\"]");
        let slow = serde_json::from_str::<(f64, String)>(&text);
        if let Some((time, len)) = usual(text.as_bytes()) {
            prop_assert_eq!(time, seconds * 1000 + millis.unwrap_or(0));
            if let Ok((slow, _)) = slow {
                prop_assert_eq!((slow * 1000.0).round() as i64, time);
                prop_assert_eq!(len, text.len());
            }
        } else {
            let of_our_days = (1_000_000_000..10_000_000_000).contains(&seconds);
            prop_assert!(!of_our_days || value.contains(['"', '\\']));
        }
    }
}

#[test]
fn digits_and_quotes_are_found_eight_at_a_time() {
    assert_eq!(usual(b"[1700000000,\"1\"],"), Some((1_700_000_000_000, 16)));
    assert_eq!(usual(br#"[1700000000,"\"],[1,2"]"#), None);
    assert_eq!(eight_digits(*b"12345678"), Some(12_345_678));
    assert_eq!(eight_digits(*b"00000009"), Some(9));
    assert_eq!(eight_digits(*b"99999999"), Some(99_999_999));
    for odd in [b"1234567:", b"/2345678", b"1234 678", b"1234567\xb8"] {
        assert_eq!(eight_digits(*odd), None);
    }
    for n in 0..40 {
        let text = format!("{}\"x\"", "\u{23}".repeat(n));
        assert_eq!(quote_at(text.as_bytes()), Some(n));
        assert_eq!(quote_at("!".repeat(n).as_bytes()), None);
    }
}
