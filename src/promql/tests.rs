use super::*;
use crate::model::MAX_TIME;
use proptest::prelude::*;

const DAY: Millis = 86_400_000;

/// The expected value for `PerInstant` with a lag of zero.
const KEPT: &str = "kept";

#[test]
fn expressions_are_classified_with_the_reason_against_caching() {
    let table = [
        ("up", KEPT),
        ("up{job=\"a\",instance!~\"b.*\"}", KEPT),
        ("{__name__=\"up\",job=\"a\"}", KEPT),
        ("{__name__=~\"up|down\"}", KEPT),
        ("  up # a comment\n  ", KEPT),
        ("# first\nsum(\n  rate(a_total[5m])\n) by (job)\n", KEPT),
        ("sum by (job,) (up)", KEPT),
        ("rate(a_total[5m])", KEPT),
        ("irate(a_total[1h30m])", KEPT),
        (
            "increase(a_total[5m] offset 1h) + increase(a_total[5m])",
            KEPT,
        ),
        ("sum without (pod) (rate(a_total{x=\"@\"}[5m]))", KEPT),
        (
            "histogram_quantile(0.9, sum by (le) (rate(b_bucket[5m])))",
            KEPT,
        ),
        ("histogram_quantile(scalar(q), b_bucket)", KEPT),
        ("topk(3, up)", KEPT),
        ("topk((1 + 2), up)", KEPT),
        ("bottomk by (job) (-1, up)", KEPT),
        ("limitk(2, up)", KEPT),
        ("limit_ratio(-0.5, up)", KEPT),
        ("quantile(0.5, up)", KEPT),
        ("count_values(\"version\", build)", KEPT),
        ("count(count by (__name__) ({job=\"a\"}))", KEPT),
        ("sort(up)", KEPT),
        ("sort_desc(sum by (job) (up))", KEPT),
        ("sort_by_label(up, \"job\")", KEPT),
        ("absent(up{job=\"gone\"})", KEPT),
        ("absent_over_time(up{job=\"gone\"}[5m])", KEPT),
        ("scalar(up) * up", KEPT),
        ("timestamp(up)", KEPT),
        ("time() - timestamp(up)", KEPT),
        ("hour(up)", KEPT),
        ("label_replace(up, \"a\", \"$1\", \"job\", \"(.*)\")", KEPT),
        ("label_join(up, \"a\", \"-\", \"job\", \"instance\")", KEPT),
        ("a / on (job) group_left (version) b", KEPT),
        ("a and b or c unless d", KEPT),
        ("a > bool 3", KEPT),
        ("-up ^ 2", KEPT),
        ("a atan2 b", KEPT),
        ("max_over_time(rate(a_total[1m])[1h:5m])", KEPT),
        ("max_over_time(up[1h:])", KEPT),
        ("max_over_time((up)[1h:5m] offset 1d) + up", KEPT),
        ("predict_linear(up[1h], 3600)", KEPT),
        ("clamp(up, 0, scalar(most))", KEPT),
        ("quantile_over_time(scalar(q), up[5m])", KEPT),
        ("up == NaN or up > -Inf", KEPT),
        ("{\"a.b\", \"c.d\"=\"e\"}", KEPT),
        // Text inside strings that looks like syntax.
        ("up{a=\"@ end()\", b=\"offset -5m\"}", KEPT),
        ("start + end", KEPT),
        // In Prometheus 3 a duration is a number, and an offset ends before the sign.
        ("up offset 5m - 10m", KEPT),
        ("up @ 1700000000", "at-modifier"),
        ("up @ 0", "at-modifier"),
        ("sum(rate(a_total[5m] @ 1700000000)) + up", "at-modifier"),
        ("max_over_time(up[1h:5m] @ 1700000000)", "at-modifier"),
        ("up @ start()", "depends-on-window"),
        ("topk(3, up) and topk(3, up @ end())", "depends-on-window"),
        ("rate(a_total[5m] @ end() offset 5m)", "depends-on-window"),
        ("max_over_time(up[1h:5m] @ start())", "depends-on-window"),
        ("vector(start())", "depends-on-window"),
        ("end() - 5", "depends-on-window"),
        ("up / range()", "depends-on-window"),
        ("up * step()", "depends-on-window"),
        ("up offset -5m", "negative-offset"),
        ("sum(rate(a_total[5m] offset -1s))", "negative-offset"),
        ("max_over_time(up[1h:5m] offset -5m)", "negative-offset"),
        (
            "max_over_time((up offset -1m)[1h:5m] offset 1h)",
            "negative-offset",
        ),
        ("a + on (x) (b or absent(c offset -1ms))", "negative-offset"),
        (
            "label_replace(up offset -5m, \"a\", \"\", \"\", \"\")",
            "negative-offset",
        ),
        ("up offset - 5m", "negative-offset"),
        ("up OFFSET -5m", "negative-offset"),
        ("up offset -1.5", "negative-offset"),
        ("up offset -1h @ 0", "at-modifier"),
        ("up offset (-5m)", "negative-offset"),
        ("up offset -(5m)", "negative-offset"),
        ("up offset (5m)", KEPT),
        ("up offset (5m) * 2", "not-understood"),
        ("up offset (5m - 10m)", "negative-offset"),
        ("rate(up[2 * (5m + 1m)])", KEPT),
        ("rate(up[5m - 10m])", "not-understood"),
        ("up offset step()", "depends-on-window"),
        ("rate(up[range() / 2])", "depends-on-window"),
        ("rate(up[max(step(), 1m)])", "depends-on-window"),
        ("max_over_time(up[1h:step()])", "depends-on-window"),
        ("rate(up[300]) + up offset 1_000 > 5m", KEPT),
        ("a + on (x) group_left () fill (0) b", KEPT),
        ("a + fill_left (-1) fill_right (2) b", KEPT),
        ("fill + fill_left", KEPT),
        ("a and fill (0) b", "not-understood"),
        ("a + fill (0) 1", "not-understood"),
        ("and and and", KEPT),
        ("rate(up @ start() [5m])", "depends-on-window"),
        ("rate(up @ 5 [5m])", "not-understood"),
        ("up @ START()", "depends-on-window"),
        ("up @ -5", "at-modifier"),
        ("topk(scalar(k), up)", "varying-parameter"),
        ("quantile(time() / 1e10, up)", "varying-parameter"),
        ("rate({job=\"a\"}[5m])", "names-may-collide"),
        ("-{__name__=~\"a|b\"}", "names-may-collide"),
        (
            "sum(max_over_time(({job=\"a\"} + 1)[1h:5m]))",
            "names-may-collide",
        ),
        ("info(up)", "unknown-function"),
        ("up[5m]", "not-a-vector"),
        ("\"text\"", "not-a-vector"),
        ("up[5m:1m]", "not-a-vector"),
        ("", "not-understood"),
        ("sum(", "not-understood"),
        ("up offset", "not-understood"),
        ("rate(up)", "not-understood"),
        // MetricsQL and newer PromQL.
        ("WITH (x = up) x", "not-understood"),
        ("rand()", "unknown-function"),
        ("now()", "unknown-function"),
        ("keep_last_value(up)", "unknown-function"),
        ("running_sum(up)", "unknown-function"),
        ("range_avg(up)", "unknown-function"),
        ("interpolate(up)", "unknown-function"),
        ("limit_offset(1, 2, up)", "unknown-function"),
        ("union(a, b)", "unknown-function"),
        ("sum(union(a, b)[5m:] ) + 1", "not-understood"),
        ("rate(up[5m:]) + sum(new(a))", "unknown-function"),
        ("(a, b)", "not-understood"),
        ("sum(up) limit 5", "not-understood"),
        ("rate(up[5i])", "not-understood"),
        ("rate(up[step()])", "depends-on-window"),
        ("rate(up[$__interval])", "not-understood"),
        ("rate(up[5m] smoothed)", "not-understood"),
        ("up default 0", "not-understood"),
        ("rate(up[5m]) keep_metric_names", "not-understood"),
        ("up @ (end() - 5)", "not-understood"),
        // Out of range.
        ("up offset 18446744073709551616", "not-understood"),
        ("up offset 300y", "not-understood"),
        ("rate(up[1e300])", "not-understood"),
        ("max_over_time(up[5m:1e300])", "not-understood"),
        ("up @ 1e300", "not-understood"),
        ("up offset -1e300", "not-understood"),
        ("holt_winters(up[5m], 0.5, 0.5)", KEPT),
    ];
    let mut wrong = Vec::new();
    for (text, expected) in table {
        let found = match classify(text) {
            Analysis::PerInstant { .. } => KEPT,
            Analysis::PassThrough(reason) => reason.as_str(),
        };
        if found != expected {
            wrong.push(format!("{text}: {found}, not {expected}"));
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

#[test]
fn the_lag_is_the_least_offset_of_what_is_read() {
    let table = [
        ("up", 0),
        ("up offset 1d", DAY),
        ("up offset 1d - up offset 2d", DAY),
        ("up offset 1d - up", 0),
        ("rate(a_total[1h] offset 1d)", DAY),
        (
            "max_over_time((up offset 1h)[1d:5m] offset 1d)",
            DAY + DAY / 24,
        ),
        ("time() + 1", MAX_TIME),
        ("up offset 290y", 290 * 365 * DAY),
        ("up offset (1h + 30m)", DAY / 16),
    ];
    for (text, lag) in table {
        assert_eq!(classify(text), Analysis::PerInstant { lag }, "{text}");
    }
}

#[test]
fn the_newest_sample_of_an_instant_query_is_known() {
    let table = [
        ("up", Some(1000)),
        ("up[1m]", Some(1000)),
        ("up offset 100ms", Some(900)),
        ("up offset -100ms + up", Some(1100)),
        (
            "max_over_time((up offset -100ms)[1s:1s] offset 300ms)",
            Some(800),
        ),
        ("up @ 5 + up", Some(5000)),
        ("up @ 0.1 + up", Some(1000)),
        ("up @ 5 offset 1s", Some(4000)),
        ("max_over_time((up offset -1s)[1m:1s] @ 7)", Some(8000)),
        ("max_over_time((up @ end())[1m:1s] offset 1s)", Some(1000)),
        ("topk(scalar(a offset -1s), up)", Some(2000)),
        ("rate({job=\"a\"}[5m])", Some(1000)),
        ("\"text\"", Some(1000 - MAX_TIME)),
        ("new(up)", None),
        ("up offset step()", None),
        ("up[", None),
    ];
    for (text, newest) in table {
        let found = read(text).reads.map(|reads| reads.newest(1000));
        assert_eq!(found, newest, "{text}");
    }
}

#[test]
fn what_depends_on_the_window_or_has_an_order_is_known_whatever_else_is() {
    for (text, window) in [
        ("up", None),
        ("up offset -1d", None),
        ("new(up)", None),
        ("up @ 3 + up @ end()", Some(Reason::Window)),
        ("new(up offset -1d) + step()", Some(Reason::Window)),
        ("topk(scalar(a), up)", Some(Reason::VaryingParameter)),
    ] {
        assert_eq!(read(text).window, window, "{text}");
    }
    for text in [
        "topk(3, up)",
        "TOPK(3, up  offset +5m)",
        "sum(BottomK(3, up))",
        "sort_by_label_desc(up, 'a')",
    ] {
        assert!(read(text).ordered, "{text}");
    }
    for text in ["up", "sort", "sum by (topk) (up)", "quantile(1, up)"] {
        assert!(!read(text).ordered, "{text}");
    }
}

#[test]
fn spellings_of_one_expression_have_one_normal_form() {
    let table: &[(&str, &[&str])] = &[
        ("up", &[" \n up\t# here\n", "(up)", "((up))", "up{}"]),
        ("up{a=\"b\",c=~\"d|e\"}", &["up { c =~ 'd|e' , a = `b` , }"]),
        ("up{a=\"1\",a!=\"2\"}", &["up{a='1',a!='2'}"]),
        ("up{a!=\"2\",a=\"1\"}", &["up{a!='2',a='1'}"]),
        ("{__name__=\"up\",a=\"b\"}", &["{a=\"b\",__name__=\"up\"}"]),
        (
            "{\"a.b\",\"c d\"=\"e\",f=\"g\"}",
            &["{f='g','c d'='e','a.b'}"],
        ),
        (
            "sum by (a, b) (rate(c_total[5m]))",
            &[
                "sum(rate(c_total[300s]))by(b,a)",
                "SUM BY(a,b,)((rate((c_total[5m]))))",
            ],
        ),
        ("sum(up)", &["sum by () (up)", "sum ( up ) by ( )"]),
        ("sum without () (up)", &["sum(up) without ()"]),
        (
            "topk by (a) (3, up)",
            &["topk(3,up) by (a)", "topk by(a)((0x3),(up))"],
        ),
        (
            "a * on (x, y) group_left (z) b",
            &[
                "a*on(y,x)group_left(z)b",
                "(a) * ON (x,y,) GROUP_LEFT (z,) (b)",
            ],
        ),
        (
            "a / ignoring (x) group_right () b",
            &["a / ignoring(x) group_right b"],
        ),
        (
            "a > bool 1",
            &["a>bool(1.0)", "a > BOOL 0x1", "a > bool 1e0"],
        ),
        ("a + b + c", &["(a + b) + c", "((a) + (b)) + c"]),
        ("a + (b + c)", &["a+(b+c)", "a + ((b + (c)))"]),
        ("a + b * c", &["a + (b * c)"]),
        ("(a + b) * c", &["(a+b)*c"]),
        ("a ^ b ^ c", &["a ^ (b ^ c)"]),
        ("(a ^ b) ^ c", &["(a^b)^c"]),
        ("-a ^ b", &["-(a ^ b)", "- (a^(b))"]),
        ("(-a) ^ b", &["(-a)^b", "(-(a))^b"]),
        ("-a * b", &["(-a) * b"]),
        ("-(a * b)", &["-(a*b)"]),
        ("a - -b", &["a - (-b)", "a--b"]),
        ("a ^ -b * c", &["a ^ (-b) * c", "(a ^ -b) * c"]),
        ("a or b and c", &["a or (b and c)", "a OR b AND c"]),
        ("(a or b) and c", &["(a OR b) and c"]),
        ("(up offset 5m) - a", &["(up offset 300s) - (a)"]),
        (
            "up @ 1.5 offset -5m",
            &["up offset -5m @ 1.5", "up OFFSET - 300s @ 15e-1"],
        ),
        ("up @ start()", &["up @ START ( )"]),
        ("up[5m] @ end()", &["up @ end() [5m]", "up[5m]@end()"]),
        (
            "max_over_time(up[1h:90s] offset 1d)",
            &["max_over_time((up)[60m:1m30s] offset 24h)"],
        ),
        ("avg_over_time(up[30m:])", &["avg_over_time(up[1800s : ])"]),
        ("(a offset 1m)[5m:1m]", &["(a offset 60s)[5m:1m]"]),
        ("up == Inf", &["up == INF", "up == inf"]),
        (
            "up == -Inf or NaN < bool up",
            &["up == -inf or nan < bool up"],
        ),
        ("up > 1e20", &["up > 100000000000000000000"]),
        ("up > 0.00001", &["up > 1e-5", "up > .00001"]),
        ("up > 8", &["up > 8.0", "up > 8.", "up > 0x8"]),
        (
            "label_replace(up, \"a\", \"\\\\\\x00\\xff\\n'\\\"é\\ufffd\", \"\", \"\")",
            &["label_replace(up, 'a', '\\\\\\000\\377\\n\\'\"\\u00e9\\ufffd', ``, '')"],
        ),
        // Syntax that only newer servers read.
        ("rate(up[300])", &["rate( up[300] )"]),
        ("up > 1_000", &["up>1_000"]),
        ("up > 5m", &["up>5m"]),
        ("up offset 0s", &["up offset 0s "]),
        ("up > 010", &["up>010"]),
        (
            "a + fill (0) b",
            &["a + fill(0.0) b", "a + fill_right(0) fill_left(0) b"],
        ),
    ];
    for (normal, others) in table {
        for text in others.iter().chain([normal]) {
            assert_eq!(canonical(text), *normal, "{text}");
        }
    }
}

#[test]
fn doubtful_expressions_stay_as_they_are_written() {
    for text in [
        " up + ",
        " rand( ) ",
        "up  offset (5m)",
        "rate( up[5m+1m] )",
        "up  offset  +5m",
        "up  @ 1_0",
        "up{a=~\"(\"}",
        "{ a=~'.*' }",
        "1 == 1",
        "\u{a0}up",
    ] {
        assert_eq!(canonical(text), text);
    }
}

#[test]
fn selectors_have_a_normal_form_too() {
    let canonical = |texts: &[&str]| {
        let texts: Vec<String> = texts.iter().map(|t| (*t).to_owned()).collect();
        canonical_selectors(&texts).unwrap_or(texts).join(" & ")
    };
    assert_eq!(
        canonical(&[" up{ b='c', a=`d` }", "{a='b'}", "down"]),
        "down & up{a=\"d\",b=\"c\"} & {a=\"b\"}"
    );
    assert_eq!(canonical(&[]), "");
    for other in [
        "up[5m]",
        "{}",
        "(up)",
        " up offset 5m",
        "{",
        "up + up",
        "sum(up)",
        "1",
    ] {
        assert_eq!(
            canonical(&["up{}", other, "a"]),
            format!("up{{}} & {other} & a")
        );
    }
}

#[test]
fn no_length_and_no_nesting_is_too_much() {
    // Anything quadratic would not finish at this length.
    const N: usize = 200_000;
    // Each has up to four words and signs, of which an expression may have so many.
    const PARTS: usize = parse::MOST_TOKENS / 4 - 10;
    let hosts: Vec<_> = (0..20_000)
        .map(|n| format!("host-{n}.example.org"))
        .collect();
    let with_parts = |n: usize| {
        let labels: Vec<_> = (0..n).map(|n| format!("l{n}")).collect();
        let labels = labels.join(",");
        [
            format!("{}a{}", "(".repeat(n), ")".repeat(n)),
            format!("{}a", "-".repeat(n)),
            format!("a{}", "+a".repeat(n)),
            format!("a{}", "^a".repeat(n)),
            format!("{}a{}", "abs(".repeat(n / 2), ")".repeat(n / 2)),
            format!("{}a{}", "sum(".repeat(n / 2), ") by (b)".repeat(n / 2)),
            format!(
                "{}a{}",
                "max_over_time(".repeat(n / 10),
                "[5m:])".repeat(n / 10)
            ),
            format!("a{{{}}}", "b=\"\",".repeat(n)),
            format!("a + on ({labels}) group_left (l) b"),
            format!("1{}", " + 1e308".repeat(n)),
        ]
    };
    let understood = [
        format!("up{{host=~\"{}\"}}", hosts.join("|")),
        vec![r#"up{l0=~"\\pL{1,900}a0|"}"#; 300].join(" or "),
        format!("a + {} b", "# (((\n".repeat(N)),
    ];
    for text in understood.into_iter().chain(with_parts(PARTS)) {
        let found = read(&text);
        let lag = if text.starts_with('1') { MAX_TIME } else { 0 };
        let expected = Analysis::PerInstant { lag };
        assert_eq!(found.analysis, expected, "{text:.40}");
        let normal = found.normal.unwrap_or_else(|| text.clone());
        assert!(normal.len() <= 2 * text.len(), "{text:.40}");
    }
    for text in with_parts(N) {
        assert_eq!(read(&text), NOT_UNDERSTOOD, "{text:.40}");
    }
    for part in [
        "(",
        ")",
        "a+",
        "{",
        "[",
        "\"",
        "'\\",
        "`",
        "#",
        "a{b=~\"(",
        "1",
        "1_",
        "0x",
        ".",
        "1e",
        "5m",
        "up[",
        "up[(",
        "up[1+",
        "up[1^",
        "sum by (a,",
        "sum(",
        "sum by",
        "a{b=\"",
        "a offset ",
        "a + on (",
        "a + fill (",
        "@",
        "\u{fffd}",
        "é",
        "\0",
        "and ",
        "f(1,",
        "a{b=~\"x{\",",
        "a{b=~\"{1\",",
        "a{b=~\"[a-\",",
    ] {
        let _ = read(&part.repeat(N));
    }
    for regex in [
        "(", "a{", "{1", "[", "a|", "(a|", "\\pL", "(?i)", "(?", "a*", "[a-", "\\",
    ] {
        let _ = regex::scan(regex.repeat(N).as_bytes());
    }
}

#[test]
fn regular_expressions_are_judged_as_by_go() {
    let (matches, not, unsure) = (Some(Some(true)), Some(Some(false)), Some(None));
    let table = [
        ("", matches),
        ("a", not),
        ("a|", matches),
        ("a|b", not),
        (".*", matches),
        (".+", not),
        ("(a*)*", matches),
        ("(a|b?)c{0,3}", matches),
        ("(a|b?)c{1,3}", not),
        ("^$", matches),
        ("\\b", not),
        ("\\B", matches),
        ("(?i)x", not),
        ("(?i:x)?", matches),
        ("(?i)", matches),
        ("a{,5}", not),
        ("{,5}", not),
        ("a{05}", not),
        ("a{0}", matches),
        ("(a{900}){0}", matches),
        ("(a{0,}){1000}", matches),
        ("(a{100}){10}", not),
        ("(a{100}){11}", None),
        ("a{1001}", None),
        ("a{5,2}", None),
        ("a{999999999999999999999}", None),
        ("a{2}{3}", None),
        ("a**", None),
        ("a*?", matches),
        ("a*??", None),
        ("*", None),
        ("x|*", None),
        ("(*)", None),
        ("(", None),
        (")", None),
        ("a)(?:b", None),
        ("[]a]", not),
        ("[^]a]*", matches),
        ("[a", None),
        ("[]", None),
        ("a]", not),
        ("[b-a]", None),
        ("[a-]", not),
        ("[a-b-c]", not),
        ("[\\d-z]", not),
        ("[[:alpha:]_]+", not),
        ("[[:foo:]]", unsure),
        ("\\pL{1,900}a0|", matches),
        ("\\p{Greek}", unsure),
        ("\\q", None),
        ("\\é", None),
        ("\\1", None),
        ("[\\b]", None),
        ("\\12", not),
        ("\\0|", matches),
        ("[\\101-\\77]", None),
        ("[\\0-\\77]", not),
        ("\\0d\\F", None),
        ("\\x41", unsure),
        ("\\.", not),
        ("\\", None),
        ("[\\", None),
        ("(?P<n>a)", unsure),
        ("(?=a)", unsure),
        ("(?i)*", unsure),
        ("a(?i)*", unsure),
    ];
    for (pattern, expected) in table {
        assert_eq!(regex::scan(pattern.as_bytes()), expected, "{pattern}");
    }
    assert_eq!(regex::scan(b"\xff"), unsure);
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(2000))]
    #[test]
    fn any_text_is_read_without_a_panic(
        parts in prop::collection::vec(prop::sample::select(&[
            "up", "a:b", "{", "}", "(", ")", "[", "]", "5m", ":", "1h30m", "\"x\"", "'", "`", "\\",
            "offset", "-", "@", "start()", "end()", "1e400", "0x", "0x1f", "-0x", "09", "1_0", ".",
            "=~", "!=", "\"(\"", "by", "on", "rate", "sum", "topk", ",", "#", "\n", " ", "é", "\0",
            "99999999999999999999y", "18446744073709551615", "1e-400", "NaN", "Inf", "bool", "or",
            "9223372036854775807ms", "and", "group_left", "ignoring", "vector", "time()", "$x",
            "^", "*", "==", "without", "fill", "step()", "`x`", "a=\"b\"", "=\"\\xff\"", "0s", "300",
        ][..]), 0..14),
        glue in prop::sample::select(&["", " "][..]),
    ) {
        let text = parts.join(glue);
        let found = read(&text);
        let normal = found.normal.as_deref().unwrap_or(&text);
        let again = read(normal);
        prop_assert_eq!(again.normal, None, "{} of {}", normal, text);
        prop_assert_eq!((again.analysis, again.reads), (found.analysis, found.reads));
    }
}

#[test]
fn a_long_expression_takes_at_most_twice_its_length() {
    let fill = |part: &str| format!("a{}", part.repeat((1 << 20) / part.len()));
    let braces = |part: &str| format!("a{{{}}}", part.repeat((1 << 20) / part.len()));
    let lists = |part: &str| format!("sum by ({}) (a)", part.repeat((1 << 20) / part.len()));
    let texts = [
        fill("+a"),
        fill(" offset 1m"),
        fill("+{a=\"b\"}"),
        fill("+(((((((a)))))))"),
        fill("+on(a)a"),
        fill("+sum(a)"),
        fill("+f(a,1,a)"),
        fill("+a[5m:1m]"),
        "(".repeat(1 << 20),
        "-".repeat(1 << 20),
        "f(a,".repeat(1 << 18),
        braces("a=\"\","),
        braces("a=~\"x\","),
        lists("a,"),
        format!("a{{b=~\"{}\"}}", "a|".repeat(1 << 19)),
        format!("a{{b=~\"{}\"}}", "(a?)*".repeat(200_000)),
        format!("a{{b=\"{}\"}}", "\\n".repeat(1 << 19)),
        format!("a{{b=\"{}\"}}", "\u{1}".repeat(1 << 20)),
    ];
    for text in texts {
        // The first time, threads and tables are set up.
        let _ = read("a");
        let counted = allocation_counter::measure(|| drop(read(&text)));
        let times = counted.bytes_max as f64 / text.len() as f64;
        println!("{times:.2} times: {text:.40}");
        assert!(times <= 2.0, "{times} times: {text:.40}");
    }
}
