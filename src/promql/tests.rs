use super::*;
use proptest::prelude::*;

const DAY: Millis = 86_400_000;

/// What stands for `PerInstant` with a lag of zero in the table.
const KEPT: &str = "kept";

#[test]
fn what_may_be_kept_and_why_not() {
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
        // Text that only looks like what is looked for.
        ("up{a=\"@ end()\", b=\"offset -5m\"}", KEPT),
        ("start + end", KEPT),
        // A duration is a number in Prometheus 3, and an offset ends before the sign.
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
        ("up * step()", "unknown-function"),
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
        ("up offset (-5m)", "not-understood"),
        ("up offset -(5m)", "not-understood"),
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
        ("rand()", "not-understood"),
        ("now()", "not-understood"),
        ("keep_last_value(up)", "not-understood"),
        ("running_sum(up)", "not-understood"),
        ("range_avg(up)", "not-understood"),
        ("interpolate(up)", "not-understood"),
        ("limit_offset(1, 2, up)", "not-understood"),
        ("union(a, b)", "not-understood"),
        ("(a, b)", "not-understood"),
        ("sum(up) limit 5", "not-understood"),
        ("rate(up[5i])", "not-understood"),
        ("rate(up[step()])", "not-understood"),
        ("rate(up[$__interval])", "not-understood"),
        ("rate(up[5m] smoothed)", "not-understood"),
        ("up default 0", "not-understood"),
        ("rate(up[5m]) keep_metric_names", "not-understood"),
        ("up @ (end() - 5)", "not-understood"),
        // Where the parser panics.
        ("up offset 18446744073709551616", "not-understood"),
        ("rate(up[1e300])", "not-understood"),
        ("max_over_time(up[5m:1e300])", "not-understood"),
        ("up @ 1e300", "at-modifier"),
        ("up offset -1e300", "not-understood"),
        ("holt_winters(up[5m], 0.5, 0.5)", "not-understood"),
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
        ("up offset 300y", MAX_TIME.min(300 * 365 * DAY)),
    ];
    for (text, lag) in table {
        assert_eq!(classify(text), Analysis::PerInstant { lag }, "{text}");
    }
}

#[test]
fn words_and_signs_are_counted_outside_of_strings() {
    let table = [
        ("up", 1),
        ("  a +\tb ", 3),
        ("-(-a)", 4),
        ("a{b=\"c((( \\\" (((\", d=~'\\\\'}", 8),
        ("a{b=`\\`} # (((\n + 1.5e3", 6),
        ("a and b", 3),
    ];
    for (text, n) in table {
        assert_eq!(tokens(text), n, "{text}");
    }
}

#[test]
fn deep_nesting_does_not_end_the_stack() {
    let n = MOST_TOKENS / 2 - 5;
    for text in [
        format!("{}a{}", "(".repeat(2 * n), ")".repeat(2 * n)),
        format!("{}a", "-".repeat(2 * n)),
        format!("a{}", "+a".repeat(n)),
        format!("a{}", "^a".repeat(n)),
        format!("{}a{}", "abs(".repeat(n), ")".repeat(n)),
    ] {
        assert_eq!(classify(&text), Analysis::PerInstant { lag: 0 });
    }
    for text in ["(".repeat(1_000_000), "a+".repeat(1_000_000) + "a"] {
        assert_eq!(classify(&text), Analysis::PassThrough(Reason::TooLong));
    }
}

#[test]
fn only_white_space_around_a_text_is_taken_off() {
    assert_eq!(canonical(" \n up  +  1 \t"), "up  +  1");
    assert_eq!(canonical("\u{a0}up"), "\u{a0}up");
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(2000))]
    #[test]
    fn no_text_is_too_odd(
        parts in prop::collection::vec(prop::sample::select(&[
            "up", "a:b", "{", "}", "(", ")", "[", "]", "5m", ":", "1h30m", "\"x\"", "'", "`", "\\",
            "offset", "-", "@", "start()", "end()", "1e400", "0x", "0x1f", "-0x", "09", "1_0", ".",
            "=~", "!=", "\"(\"", "by", "on", "rate", "sum", "topk", ",", "#", "\n", " ", "é", "\0",
            "99999999999999999999y", "18446744073709551615", "1e-400", "NaN", "Inf", "bool", "or",
            "9223372036854775807ms", "and", "group_left", "ignoring", "vector", "time()", "$x",
        ][..]), 0..14),
        glue in prop::sample::select(&["", " "][..]),
    ) {
        // That it comes back is the point.
        let _ = classify(&parts.join(glue));
    }
}
