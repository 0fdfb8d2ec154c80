//! Ceilings: lines of a function and of a file, columns of what no formatter keeps, bytes of anything.

use super::Finding;
use super::cpp;
use super::source::Source;
use super::tree::{File, Tree};

const FUNCTION_LINES_MAX: usize = 70;
const FILE_LINES_MAX: usize = 500;
const CPP_COLUMNS_MAX: usize = 130;
const ARCHITECTURE_LINES_MAX: usize = 200;
const BLOB_BYTES_MAX: u64 = 1 << 20;

pub(super) fn check(tree: &Tree, findings: &mut Vec<Finding>) {
    for file in &tree.files {
        blob(file, findings);
        if file.is_rust() || file.is_script() || file.is_cpp() {
            lines(
                file,
                FILE_LINES_MAX,
                "split it where a newcomer would look for the parts",
                findings,
            );
        }
        if file.path == "ARCHITECTURE.md" {
            lines(
                file,
                ARCHITECTURE_LINES_MAX,
                "this page is read in one sitting: move detail to docs/",
                findings,
            );
        }
        if file.is_rust() {
            rust_functions(file, findings);
        } else if file.is_python() {
            python_functions(file, findings);
        } else if file.is_cpp() {
            cpp_functions(file, findings);
            columns(file, CPP_COLUMNS_MAX, findings);
        }
    }
}

fn blob(file: &File, findings: &mut Vec<Finding>) {
    if file.bytes > BLOB_BYTES_MAX {
        let message = format!(
            "{} bytes, at most {BLOB_BYTES_MAX}: generate it in a script or shrink it",
            file.bytes
        );
        findings.push(Finding::new(file, 1, "size", message));
    }
}

fn lines(file: &File, limit: usize, advice: &str, findings: &mut Vec<Finding>) {
    let count = file.text().lines().count();
    if count > limit {
        let message = format!("{count} lines, at most {limit}: {advice}");
        findings.push(Finding::new(file, limit + 1, "file length", message));
    }
}

fn rust_functions(file: &File, findings: &mut Vec<Finding>) {
    for function in Source::new(file.text()).functions() {
        long_function(file, &function.name, function.line, function.body_lines, findings);
    }
}

fn cpp_functions(file: &File, findings: &mut Vec<Finding>) {
    for function in cpp::functions(&Source::new(file.text()).code) {
        long_function(file, &function.name, function.line, function.body_lines, findings);
    }
}

fn columns(file: &File, limit: usize, findings: &mut Vec<Finding>) {
    for (index, line) in file.text().lines().enumerate() {
        let count = line.chars().count();
        if count > limit {
            let message = format!("{count} columns, at most {limit}");
            findings.push(Finding::new(file, index + 1, "line length", message));
        }
    }
}

/// A Python function lasts until the next line that is indented no more than its `def`.
fn python_functions(file: &File, findings: &mut Vec<Finding>) {
    let lines: Vec<&str> = file.text().lines().collect();
    let indent = |line: &str| line.len() - line.trim_start().len();
    for (index, line) in lines.iter().enumerate() {
        let body = line.trim_start();
        let Some(rest) = body
            .strip_prefix("def ")
            .or_else(|| body.strip_prefix("async def "))
        else {
            continue;
        };
        let name = rest.split('(').next().unwrap_or(rest);
        let ends = |next: &&str| {
            let start = next.trim_start();
            !start.is_empty() && !start.starts_with(')') && indent(next) <= indent(line)
        };
        let after = &lines[index + 1..];
        let taken = after.iter().position(ends).unwrap_or(after.len());
        let blank_tail = after[..taken]
            .iter()
            .rev()
            .take_while(|next| next.trim().is_empty())
            .count();
        long_function(file, name, index + 1, taken - blank_tail + 1, findings);
    }
}

fn long_function(file: &File, name: &str, line: usize, count: usize, findings: &mut Vec<Finding>) {
    if count > FUNCTION_LINES_MAX {
        let message =
            format!("`{name}` has {count} lines, at most {FUNCTION_LINES_MAX}: split it by what it decides");
        findings.push(Finding::new(file, line, "function length", message));
    }
}

#[cfg(test)]
mod tests {
    use super::super::tests::found;
    use super::*;

    fn rust_function(lines: usize) -> String {
        format!("fn f() {{\n{}}}\n", "    a();\n".repeat(lines))
    }

    #[test]
    fn functions_of_seventy_lines_pass_and_longer_ones_do_not() {
        assert!(found(check, &[("a.rs", &rust_function(70))]).is_empty());
        assert_eq!(
            found(check, &[("a.rs", &rust_function(71))]),
            ["a.rs:1: function length"]
        );
    }

    #[test]
    fn python_functions_are_measured_by_indent() {
        let python = |lines: usize| {
            format!(
                "class A:\n    def f(\n        self,\n    ):\n{}\n\ndef g():\n    pass\n",
                "        a()\n".repeat(lines - 3)
            )
        };
        assert!(found(check, &[("a.py", &python(70))]).is_empty());
        assert_eq!(
            found(check, &[("a.py", &python(71))]),
            ["a.py:2: function length"]
        );
    }

    #[test]
    fn cpp_has_the_same_ceilings_and_one_of_columns() {
        let kernel = |lines: usize| {
            format!(
                "KERNEL(k, A, 256) {{\n{}}}\n",
                "  if (x) { y(); }\n".repeat(lines)
            )
        };
        assert!(found(check, &[("a.cu", &kernel(70))]).is_empty());
        for name in ["a.cu", "a.cuh", "a.cpp", "a.h"] {
            assert_eq!(
                found(check, &[(name, &kernel(71))]),
                [format!("{name}:1: function length")]
            );
            assert_eq!(
                found(check, &[(name, &"// a\n".repeat(501))]),
                [format!("{name}:501: file length")]
            );
            let line = format!("\n// {}\n", "é".repeat(128));
            assert_eq!(found(check, &[(name, &line)]), [format!("{name}:2: line length")]);
            assert!(found(check, &[(name, &line.replacen('é', "", 1))]).is_empty());
        }
    }

    #[test]
    fn files_have_a_ceiling_too_but_fixtures_do_not() {
        let text = "// a\n".repeat(501);
        assert_eq!(found(check, &[("a.rs", &text)]), ["a.rs:501: file length"]);
        assert!(found(check, &[("a/tests/fixtures/a.rs", &text)]).is_empty());
        assert!(found(check, &[("a.json", &text)]).is_empty());
        let script = format!("#!/usr/bin/env bash\n{}", "true\n".repeat(500));
        assert_eq!(
            found(check, &[("scripts/demo", &script)]),
            ["scripts/demo:501: file length"]
        );
    }

    #[test]
    fn the_architecture_page_stays_short() {
        let text = "line\n".repeat(201);
        assert_eq!(
            found(check, &[("ARCHITECTURE.md", &text)]),
            ["ARCHITECTURE.md:201: file length"]
        );
    }

    #[test]
    fn blobs_stay_out() {
        let text = "x".repeat(1 + (1 << 20));
        assert_eq!(found(check, &[("a.bin", &text)]), ["a.bin:1: size"]);
        assert!(found(check, &[("a.bin", &text[1..])]).is_empty());
    }
}
