//! Functions of C++ and CUDA, in source whose comments and strings are blank: enough to measure them.

use super::source::{Function, line_of};

/// Every function that has a body and stands in no other, so no lambda, in the order of their first lines.
pub(super) fn functions(code: &str) -> Vec<Function> {
    let mut found = Vec::new();
    let mut inside_until = 0;
    for (open, _) in code.match_indices('{') {
        if open < inside_until {
            continue;
        }
        let Some(name) = name_before(&code[..open]) else {
            continue;
        };
        let close = matching_brace(code, open);
        inside_until = close;
        found.push(Function {
            name,
            line: line_of(code, open),
            body_lines: (line_of(code, close) - line_of(code, open)).saturating_sub(1),
        });
    }
    found
}

/// The name of the function whose head ends here: `name(...)`, and what may stand between that and a body. None of a class, a
/// namespace or a list of values.
fn name_before(head: &str) -> Option<String> {
    // What has been said since the last declaration; lines of the preprocessor end none.
    let start = head.rfind([';', '{', '}']).map_or(0, |at| at + 1);
    let declaration = &head[start..];
    let open = declaration.find('(')?;
    let name = declaration[..open].trim_end();
    let from = name
        .rfind(|c: char| !c.is_alphanumeric() && c != '_' && c != '~')
        .map_or(0, |at| at + 1);
    let word = &name[from..];
    let is_value = name.contains('=') || word.is_empty();
    if is_value || ["if", "for", "while", "switch", "asm", "alignas"].contains(&word) {
        return None;
    }
    // A kernel's name is the first argument of the macro that defines it.
    if word == "KERNEL" {
        let arguments = &declaration[open + 1..];
        return Some(
            arguments
                .split([',', ')'])
                .next()
                .unwrap_or(word)
                .trim()
                .to_owned(),
        );
    }
    Some(word.to_owned())
}

/// The `}` that closes the `{` at `open`, or the end where none does.
fn matching_brace(code: &str, open: usize) -> usize {
    let mut depth = 0_usize;
    for (at, byte) in code.bytes().enumerate().skip(open) {
        match byte {
            b'{' => depth += 1,
            b'}' => {
                depth -= 1;
                if depth == 0 {
                    return at;
                }
            }
            _ => {}
        }
    }
    code.len()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn found(code: &str) -> Vec<(String, usize, usize)> {
        let functions = functions(code).into_iter();
        functions.map(|f| (f.name, f.line, f.body_lines)).collect()
    }

    fn one(name: &str, line: usize, body_lines: usize) -> (String, usize, usize) {
        (name.to_owned(), line, body_lines)
    }

    #[test]
    fn functions_methods_and_kernels_are_measured() {
        let code = "namespace n {\nclass C {\n public:\n  explicit C(int x) : x_(x) {\n  }\n  int f() const { return x_; }\n};\n}\n\
                    template <int D>\nDEVICE void g(int (&a)[D],\n              int b) {\n  auto h = [&](int i) {\n    x();\n  };\n}\n\
                    KERNEL(k, Args, 256) {\n  y();\n}\n";
        assert_eq!(
            found(code),
            [one("C", 4, 0), one("f", 6, 0), one("g", 11, 3), one("k", 16, 1)]
        );
    }

    #[test]
    fn what_is_no_function_is_not() {
        let code = "struct S { int a[2]; };\nenum E { A };\nint x[] = {1, 2};\nauto y = f(1) ? S{} : S{};\n\
                    struct alignas(16) T {\n  int w;\n};\nextern \"C\" int f(void);\n";
        assert!(found(code).is_empty(), "{:?}", found(code));
    }
}
