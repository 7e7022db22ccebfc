//! The documents: every link leads to a file and a heading that exist.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};

fn root() -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR"))
}

/// Every Markdown file of the repository.
fn pages() -> Vec<PathBuf> {
    let mut found = Vec::new();
    let mut open = vec![root()];
    while let Some(folder) = open.pop() {
        for entry in std::fs::read_dir(folder).unwrap() {
            let path = entry.unwrap().path();
            let name = path.file_name().unwrap().to_str().unwrap();
            if path.is_dir() && !name.starts_with('.') && name != "target" {
                open.push(path);
            } else if name.ends_with(".md") {
                found.push(path);
            }
        }
    }
    assert!(found.len() > 10, "{found:?}");
    found
}

/// The text of a page without its code blocks.
fn prose(page: &Path) -> String {
    let text = std::fs::read_to_string(page).unwrap();
    let mut code = false;
    let lines = text.lines().filter(|line| {
        let fence = line.trim_start().starts_with("```");
        code ^= fence;
        !code && !fence
    });
    lines.map(|line| format!("{line}\n")).collect()
}

/// The anchors of a page: its headings in lower case, spaces as hyphens, punctuation left out.
fn anchors(page: &Path) -> BTreeSet<String> {
    let text = prose(page);
    let headings = text.lines().filter(|line| line.starts_with('#'));
    headings
        .map(|line| {
            let title = line.trim_start_matches('#').trim().to_lowercase();
            let kept = title
                .chars()
                .filter(|c| c.is_alphanumeric() || matches!(c, ' ' | '-' | '_'));
            kept.map(|c| if c == ' ' { '-' } else { c }).collect()
        })
        .collect()
}

#[test]
fn links_lead_to_files_and_headings_that_exist() {
    let mut wrong = Vec::new();
    let mut links = 0;
    for page in pages() {
        let text = prose(&page);
        for (at, _) in text.match_indices("](") {
            let target = text[at + 2..].split(')').next().unwrap();
            if target.contains("://") {
                continue;
            }
            links += 1;
            let (file, anchor) = target.split_once('#').unwrap_or((target, ""));
            let found = match file {
                "" => page.clone(),
                file => page.parent().unwrap().join(file),
            };
            if !found.exists() {
                wrong.push(format!("{}: there is no {file}", page.display()));
            } else if !anchor.is_empty() && !anchors(&found).contains(anchor) {
                wrong.push(format!("{}: {target} has no heading", page.display()));
            }
        }
    }
    assert!(links > 50, "only {links} links");
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

#[test]
fn anchors_are_those_that_browsers_jump_to() {
    let folder = tempfile::tempdir().unwrap();
    let page = folder.path().join("page.md");
    std::fs::write(&page, "# A `b`, c-d!\n```sh\n# no heading\n```\n## Two\n").unwrap();
    let expected = BTreeSet::from(["a-b-c-d".to_owned(), "two".to_owned()]);
    assert_eq!(anchors(&page), expected);
}

/// The keys of config.toml whose comments speak of a bound have a row in the table of limits, with the same
/// default.
#[test]
fn every_bound_of_the_configuration_is_in_the_table_of_limits() {
    let read = |path: &str| std::fs::read_to_string(root().join(path)).unwrap();
    let (config, page) = (read("config.toml"), read("docs/protection.md"));
    let (_, table) = page.split_once("\n## Every limit\n").unwrap();
    let (table, _) = table.split_once("\n## ").unwrap();
    let rows: Vec<Vec<&str>> = table
        .lines()
        .filter(|line| line.starts_with("| "))
        .map(|line| line.split(" | ").collect())
        .collect();
    let plain = |text: &str| text.replace([' ', '"'], "");
    let mut bounds = 0;
    for line in config.lines() {
        let Some((setting, comment)) = line.trim_start_matches("# ").split_once(" # ") else {
            continue;
        };
        let words = ["most ", "longest ", "largest ", "upper bound"];
        let is_bound = words
            .iter()
            .any(|word| comment.trim_start().starts_with(word));
        let Some((key, default)) = setting.split_once(" = ").filter(|_| is_bound) else {
            continue;
        };
        bounds += 1;
        let named = |cell: &str| {
            let names = cell.split('`').skip(1).step_by(2);
            names
                .into_iter()
                .any(|name| name.rsplit('.').next() == Some(key))
        };
        let found = rows.iter().any(|row| {
            named(row[0])
                && row
                    .get(1)
                    .is_some_and(|cell| plain(cell).contains(&plain(default)))
        });
        assert!(found, "docs/protection.md has no row for {key} = {default}");
    }
    assert!(bounds >= 14, "{bounds}");
}
