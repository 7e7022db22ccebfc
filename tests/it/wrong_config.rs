//! Invalid configurations, as a table: `tests/config/wrong.txt`.
//!
//! An entry is a line `== what is wrong`, optionally environment variables (`$ NAME=value`), the
//! file, and after `-->` the complete error line. `{dir}` is a folder with files to refer to: the
//! certificates and keys a and b, `cut.crt`, `empty` and `binary`.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Write;
use std::path::Path;
use std::process::{Command, Stdio};

use heliostat::config;

/// Texts that stand for secrets in the table. No error repeats them.
const SECRETS: [&str; 2] = ["hunter2mark", "4815162342"];

struct Wrong {
    about: String,
    env: BTreeMap<String, String>,
    text: String,
    says: String,
}

const TABLE: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/config/wrong.txt");

fn table() -> Vec<Wrong> {
    let table = std::fs::read_to_string(TABLE).unwrap();
    let entry = |entry: &str| {
        let (about, rest) = entry.split_once('\n').unwrap();
        let (file, says) = rest.split_once("--> ").unwrap_or((rest, ""));
        let set = |line: &str| {
            let (name, value) = line.strip_prefix("$ ")?.split_once('=')?;
            Some((name.to_owned(), value.to_owned()))
        };
        let text = file.lines().filter(|line| !line.starts_with("$ "));
        Wrong {
            about: about.to_owned(),
            env: file.lines().filter_map(set).collect(),
            text: text.fold(String::new(), |all, line| all + line + "\n"),
            says: says.trim_end().to_owned(),
        }
    };
    let entries = format!("\n{table}");
    entries.split("\n== ").skip(1).map(entry).collect()
}

/// Writes the files that the table names.
fn files(folder: &Path) {
    for name in ["a", "b"] {
        let made = rcgen::generate_simple_self_signed([name.to_owned()]).unwrap();
        let write = |kind: &str, pem: &str| {
            std::fs::write(folder.join(format!("{name}.{kind}")), pem).unwrap();
        };
        write("crt", &made.cert.pem());
        write("key", &made.signing_key.serialize_pem());
    }
    let whole = std::fs::read_to_string(folder.join("a.crt")).unwrap();
    std::fs::write(folder.join("cut.crt"), &whole[..whole.len() / 2]).unwrap();
    std::fs::write(folder.join("empty"), "").unwrap();
    std::fs::write(folder.join("binary"), b"\xff\xfe\x00").unwrap();
}

fn said(wrong: &Wrong, dir: &str) -> String {
    let text = wrong.text.replace("{dir}", dir);
    match config::parse(&text, "c.toml", &wrong.env) {
        Ok(_) => "it is taken".to_owned(),
        Err(error) => {
            let shown = format!("{error} {error:?}");
            for secret in SECRETS {
                assert!(!shown.contains(secret), "{}: {shown}", wrong.about);
            }
            error.to_string().replace(dir, "{dir}")
        }
    }
}

#[test]
fn every_wrong_configuration_gets_an_error_that_helps() {
    let folder = tempfile::tempdir().unwrap();
    files(folder.path());
    let dir = folder.path().to_str().unwrap();
    let table = table();
    let mut differ = String::new();
    for wrong in &table {
        let said = said(wrong, dir);
        if said != wrong.says {
            let _ = write!(
                differ,
                "== {}\n{}--> {}\nand not {}\n",
                wrong.about, wrong.text, said, wrong.says
            );
        }
    }
    assert!(differ.is_empty(), "{differ}");
    assert!(table.len() >= 150, "only {}", table.len());
    let titles: BTreeSet<_> = table.iter().map(|w| &w.about).collect();
    assert_eq!(titles.len(), table.len(), "titles are told apart");
}

#[test]
fn every_key_and_section_is_in_the_table() {
    let all: String = table().iter().map(|w| w.says.clone() + "\n").collect();
    let built_in = concat!(env!("CARGO_MANIFEST_DIR"), "/config.toml");
    let built_in = std::fs::read_to_string(built_in).unwrap();
    let mut section = "";
    let mut keys = 0;
    for line in built_in.lines() {
        let line = line.strip_prefix("# ").unwrap_or(line);
        if let Some((name, _)) = line.strip_prefix('[').and_then(|l| l.split_once(']')) {
            section = name.trim_start_matches('[');
        } else if let Some((key, _)) = line.split_once(" = ")
            && key.bytes().all(|b| b.is_ascii_lowercase() || b == b'_')
        {
            keys += 1;
            let found = all.lines().any(|line| {
                let mut words = line.split(": ");
                words.any(|word| {
                    let rest = word
                        .strip_prefix(section)
                        .map(|rest| rest.trim_start_matches(['[', ']', '0', '1']));
                    let rest = rest.and_then(|rest| rest.strip_prefix('.')?.strip_prefix(key));
                    rest.is_some_and(|rest| rest.is_empty() || rest.starts_with(['.', '[']))
                })
            });
            assert!(found, "nothing is wrong with {section}.{key}");
        }
    }
    assert!(keys > 50, "only {keys} keys");
}

/// Returns the exit status of `heliostat check` and its standard error.
fn check(path: &Path, env: &BTreeMap<String, String>) -> (Option<i32>, String) {
    let mut command = Command::new(env!("CARGO_BIN_EXE_heliostat"));
    command.arg("check").arg("--config").arg(path).envs(env);
    let run = command.stdin(Stdio::null()).output().unwrap();
    let said = String::from_utf8(run.stderr).unwrap();
    assert!(run.stdout.is_empty(), "{:?}", run.stdout);
    (run.status.code(), said)
}

#[test]
fn check_reports_an_invalid_configuration_and_exits_with_2() {
    let folder = tempfile::tempdir().unwrap();
    files(folder.path());
    let dir = folder.path().to_str().unwrap();
    let path = folder.path().join("c.toml");
    let shown = path.to_str().unwrap();
    for wrong in table().iter().step_by(20) {
        std::fs::write(&path, wrong.text.replace("{dir}", dir)).unwrap();
        let expected = wrong.says.replace("c.toml:", &format!("{shown}:"));
        let expected = format!("heliostat: {}\n", expected.replace("{dir}", dir));
        assert_eq!(check(&path, &wrong.env), (Some(2), expected));
    }
    // Files that are not text.
    for (bytes, says) in [
        (
            &b"[server]\n# gr\xf6\xdfe\nlisten = 5"[..],
            ":2:5: is not valid UTF-8 from here on",
        ),
        (b"\xff\xfe[\0", ":1:1: is not valid UTF-8 from here on"),
        (b"\x7fELF\x02\x01\x01\0\0\0", ":1:"),
    ] {
        std::fs::write(&path, bytes).unwrap();
        let (status, said) = check(&path, &BTreeMap::new());
        assert_eq!(status, Some(2), "{said}");
        let start = format!("heliostat: {shown}{says}");
        assert!(said.starts_with(&start), "{said}");
    }
    for (path, says) in [
        (folder.path(), "Is a directory"),
        (&folder.path().join("none.toml"), "No such file"),
    ] {
        let (status, said) = check(path, &BTreeMap::new());
        let start = format!("heliostat: {}: cannot be read: {says}", path.display());
        assert!(status == Some(2) && said.starts_with(&start), "{said}");
    }
}

#[test]
fn unusual_but_valid_configurations_are_accepted() {
    let taken = |text: &str| config::parse(text, "c.toml", &BTreeMap::new()).map(drop);
    let built_in = include_str!("../../config.toml");
    let whole = built_in.replace(
        "kind = \"demo\"",
        "kind = \"mirror\"\nurls = [\"http://a\"]",
    );
    for text in [
        "",
        "\n# nothing\n",
        "\u{feff}[server]\nmax_points = 5\n",
        "[server]\r\nmax_points = 5\r\n",
        "[server]\n[cache]\n[targets]\n[state]\n[log]\n[server.tls]\n",
        "[server]\nlisten = \"[::]:0\"\nrequest_timeout = \"1s\"\n[[upstream]]\ntimeout = \"1m\"\nretries = 0\nhedge_after = \"0s\"",
        "[[upstream]]\nrate_limit.per_second = 5\nbreaker.failures = 2",
        "upstream = []",
        // A section that was copied and then given another kind.
        &whole,
        "[server]\nmax_body = \"64B\"\n[cache]\nmemory = \"1KiB\"\n[[upstream]]\nkind = \"prometheus\"\nurls = [\"http://a\"]\napi_key = \"k\"\nheaders = {}\nmax_response = \"10B\"",
    ] {
        if let Err(error) = taken(text) {
            panic!("{text}\n{error}");
        }
    }
}

#[cfg(unix)]
#[test]
fn variables_that_are_no_text_are_no_reason_to_panic() {
    use std::os::unix::ffi::OsStrExt;
    let odd = std::ffi::OsStr::from_bytes(b"\xff\xfe");
    let mut command = Command::new(env!("CARGO_BIN_EXE_heliostat"));
    command.args(["check", "--config", "/none"]).env("ODD", odd);
    let run = command.output().unwrap();
    assert_eq!(run.status.code(), Some(2));
    command.env("HELIOSTAT_SERVER__MAX_POINTS", odd);
    let built_in = concat!(env!("CARGO_MANIFEST_DIR"), "/config.toml");
    let run = command.args(["--config", built_in]).output().unwrap();
    assert_eq!(run.status.code(), Some(2));
}
