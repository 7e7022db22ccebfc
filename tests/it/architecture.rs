//! Rules that can be checked on the sources: which module may import which, by the table in
//! `docs/architecture.md`; how long a file may be

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};

/// The modules that a module may import besides itself.
enum Imports {
    Everything,
    Only(BTreeSet<String>),
}

/// Reads the table of modules in `docs/architecture.md`.
fn table() -> BTreeMap<String, Imports> {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("docs/architecture.md");
    let page = std::fs::read_to_string(path).unwrap();
    let head = "| module | contents | may import |\n|---|---|---|\n";
    let (_, rows) = page.split_once(head).expect("the page has the table");
    let mut table = BTreeMap::new();
    for row in rows.lines().take_while(|line| line.starts_with('|')) {
        let cells: Vec<_> = row.trim_matches('|').split('|').map(str::trim).collect();
        let [module, _, imports] = cells[..] else {
            panic!("{row}");
        };
        let imports = match imports {
            "everything" => Imports::Everything,
            "nothing" => Imports::Only(BTreeSet::new()),
            list => Imports::Only(list.split(", ").map(quoted).collect()),
        };
        assert!(table.insert(quoted(module), imports).is_none(), "{row}");
    }
    assert!(table.len() > 10, "only {} modules", table.len());
    table
}

/// The name between backticks.
fn quoted(cell: &str) -> String {
    let name = cell.strip_prefix('`').and_then(|c| c.strip_suffix('`'));
    name.unwrap_or_else(|| panic!("{cell} is not `name`"))
        .to_owned()
}

/// Most lines of a file before its tests, and of `main.rs`.
const LONGEST: usize = 500;
const LONGEST_MAIN: usize = 130;

fn sources() -> Vec<PathBuf> {
    let mut found = Vec::new();
    let mut open = vec![root()];
    while let Some(folder) = open.pop() {
        for entry in std::fs::read_dir(folder).unwrap() {
            let path = entry.unwrap().path();
            if path.is_dir() {
                open.push(path);
            } else if path.extension().is_some_and(|e| e == "rs") {
                found.push(path);
            }
        }
    }
    assert!(found.len() > 20);
    found
}

fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("src")
}

/// The module at the top of the crate that a file belongs to.
fn module(path: &Path) -> String {
    let inside = path.strip_prefix(root()).unwrap();
    let first = Path::new(inside.iter().next().unwrap());
    first.file_stem().unwrap().to_str().unwrap().to_owned()
}

/// Returns the text before the tests; empty for a file of tests.
fn product<'a>(path: &Path, text: &'a str) -> &'a str {
    if path.file_name().is_some_and(|n| n == "tests.rs") {
        return "";
    }
    // A `mod tests;` may be followed by more; a `mod tests {` is the end.
    text.find("#[cfg(test)]\nmod tests {")
        .map_or(text, |at| &text[..at])
}

/// The top-level modules that `text` names after `crate::`.
fn imports(text: &str) -> BTreeSet<String> {
    let code: String = text
        .lines()
        .map(|line| line.split("//").next().unwrap_or_default())
        .collect::<Vec<_>>()
        .join("\n");
    let mut found = BTreeSet::new();
    for start in ["crate::", "heliostat::"] {
        for (at, _) in code.match_indices(start) {
            let before = code[..at].chars().next_back();
            if before.is_none_or(|c| !c.is_alphanumeric() && c != '_' && c != '$') {
                found.extend(firsts(&code[at + start.len()..]));
            }
        }
    }
    found
}

/// The first names of a path or of a group of paths, such as `a` and `b` of `{a::x, b::{y, z}}`.
fn firsts(rest: &str) -> Vec<String> {
    let name = |text: &str| -> String {
        let word = text.trim_start().chars();
        word.take_while(|c| c.is_alphanumeric() || *c == '_')
            .collect()
    };
    let Some(group) = rest.trim_start().strip_prefix('{') else {
        return vec![name(rest)];
    };
    let (mut depth, mut names, mut expects) = (0, Vec::new(), true);
    for (at, c) in group.char_indices() {
        match c {
            '}' if depth == 0 => break,
            '{' => depth += 1,
            '}' => depth -= 1,
            ',' if depth == 0 => expects = true,
            c if expects && !c.is_whitespace() => {
                names.push(name(&group[at..]));
                expects = false;
            }
            _ => {}
        }
    }
    names
}

#[test]
fn imports_follow_the_table() {
    let table = table();
    let mut wrong = Vec::new();
    let mut used = BTreeSet::new();
    for path in sources() {
        let text = std::fs::read_to_string(&path).unwrap();
        let from = module(&path);
        let Some(allowed) = table.get(&from) else {
            wrong.push(format!("{from} is not in the table"));
            continue;
        };
        for to in imports(product(&path, &text)) {
            let may = match allowed {
                Imports::Everything => true,
                Imports::Only(modules) => modules.contains(&to),
            };
            if to != from && !may {
                wrong.push(format!("{} imports {to}", path.display()));
            }
            used.insert((from.clone(), to));
        }
        if product(&path, &text).contains("super::super::") {
            // Such a path would bypass the table.
            wrong.push(format!("{} has a path with super::super", path.display()));
        }
    }
    let modules: BTreeSet<_> = sources().iter().map(|path| module(path)).collect();
    for (module, allowed) in &table {
        let Imports::Only(allowed) = allowed else {
            continue;
        };
        if !modules.contains(module) {
            wrong.push(format!("the table has a module {module} that is gone"));
        }
        for to in allowed {
            if !used.contains(&(module.clone(), to.clone())) {
                wrong.push(format!("{module} may import {to} and does not"));
            }
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
    let engine_uses_upstream = ("engine".to_owned(), "upstream".to_owned());
    assert!(
        used.contains(&engine_uses_upstream),
        "nothing is read: {used:?}"
    );
}

/// Only `app` builds adapters; all others use them through the trait.
#[test]
fn only_app_names_a_concrete_adapter() {
    let mut named = BTreeSet::new();
    for path in sources() {
        let text = std::fs::read_to_string(&path).unwrap();
        let kinds = ["cloudwatch", "mirror", "prometheus"];
        let names = |kind: &str| product(&path, &text).contains(&format!("adapters::{kind}"));
        let of_tests = path
            .parent()
            .is_some_and(|folder| folder.ends_with("tests"));
        if !of_tests && kinds.iter().any(|kind| names(kind)) {
            named.insert(module(&path));
        }
    }
    named.remove("adapters");
    assert_eq!(named, BTreeSet::from(["app".to_owned()]));
}

#[test]
fn files_are_short() {
    let mut wrong = Vec::new();
    for path in sources() {
        let text = std::fs::read_to_string(&path).unwrap();
        let lines = product(&path, &text).lines().count();
        let most = match path.strip_prefix(root()).unwrap() {
            name if name == Path::new("main.rs") => LONGEST_MAIN - 1,
            _ => LONGEST,
        };
        if lines > most {
            wrong.push(format!(
                "{} has {lines} lines, more than {most}",
                path.display()
            ));
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

#[test]
fn paths_are_found_in_every_form() {
    let found = |text: &str| imports(text).into_iter().collect::<Vec<_>>().join(" ");
    assert_eq!(found("use crate::model::Error;"), "model");
    assert_eq!(
        found("use crate::{engine, front::{Body, Front}, wire as w};"),
        "engine front wire"
    );
    assert_eq!(
        found("pub(crate) use crate::{\n    a::b,\n    c,\n};"),
        "a c"
    );
    assert_eq!(
        found("let x: crate::upstream::Trace = f(&crate::demo::G);"),
        "demo upstream"
    );
    assert_eq!(
        found("// use crate::model;\n/// [`crate::wire`]\nlet a = $crate::x;"),
        ""
    );
    assert_eq!(found("use heliostat::cli;\nmycrate::x()"), "cli");
}

/// The most type names, in percent, that may be defined in more than one file.
const MOST_SHARED_PERCENT: usize = 7;

#[test]
fn a_type_name_stands_for_one_thing() {
    let mut places: BTreeMap<String, BTreeSet<PathBuf>> = BTreeMap::new();
    for path in sources() {
        let text = std::fs::read_to_string(&path).unwrap();
        for line in product(&path, &text).lines() {
            if let Some(name) = type_name(line) {
                places.entry(name).or_default().insert(path.clone());
            }
        }
    }
    let shared = |(_, files): &(&String, &BTreeSet<PathBuf>)| files.len() > 1;
    let shared: Vec<_> = places.iter().filter(shared).map(|(name, _)| name).collect();
    println!(
        "{} of {} type names stand in more than one file: {shared:?}",
        shared.len(),
        places.len()
    );
    assert!(places.len() > 200, "type names are found");
    assert!(
        shared.len() * 100 <= places.len() * MOST_SHARED_PERCENT,
        "{} of {} type names stand in more than one file: {shared:?}",
        shared.len(),
        places.len()
    );
}

/// The name of the type that `line` defines at the top of a module.
fn type_name(line: &str) -> Option<String> {
    let rest = match line.strip_prefix("pub") {
        Some(rest) if rest.starts_with('(') => rest.split_once(") ")?.1,
        Some(rest) => rest.strip_prefix(' ')?,
        None => line,
    };
    let (keyword, rest) = rest.split_once(' ')?;
    if !["struct", "enum", "trait", "type"].contains(&keyword) {
        return None;
    }
    let name: String = rest
        .chars()
        .take_while(|c| c.is_alphanumeric() || *c == '_')
        .collect();
    name.starts_with(char::is_uppercase).then_some(name)
}
