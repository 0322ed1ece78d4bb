//! As much of Go's templates as the chart uses.
//!
//! ```text
//! text {{ a pipeline | of functions }} text      {{- trims -}}
//! {{ if }} {{ else if }} {{ else }} {{ end }}    {{ range $k, $v := x }} {{ with x }}
//! {{ define "name" }} … {{ include "name" x }}   {{ $x := … }} and comments
//! ```
//! What is not known is an error, never skipped: a template that says more than this fails the tests.

use super::functions;
use larder_model::{Fault, Result};
use serde_json::Value;
use std::collections::BTreeMap;

/// One step of a pipeline.
#[derive(Debug, Clone, PartialEq)]
enum Term {
    /// A constant.
    Value(Value),
    /// `.a.b`, or `$x.a.b` (the variable's name; `""`: `$`).
    Path(Option<String>, Vec<String>),
    /// `( … )`
    Nested(Pipeline),
    /// A function's name.
    Function(String),
}

type Pipeline = Vec<Vec<Term>>;

#[derive(Debug, Clone, PartialEq)]
enum Node {
    Text(String),
    Print(Pipeline),
    Set(String, Pipeline),
    /// The first whose pipeline is true; `with` makes that the dot.
    If(Vec<(Pipeline, Vec<Node>)>, Vec<Node>, bool),
    Range(Vec<String>, Pipeline, Vec<Node>, Vec<Node>),
}

/// Templates by name.
#[derive(Debug, Default)]
pub(super) struct Templates {
    named: BTreeMap<String, Vec<Node>>,
    files: BTreeMap<String, String>,
}

/// What is between two marks.
#[derive(Debug)]
enum Piece {
    Text(String),
    Action(Vec<String>),
}

fn wrong(what: impl std::fmt::Display) -> Fault {
    Fault::internal(format!("understand the chart's templates: {what}"))
}

impl Templates {
    /// Files that templates may quote.
    pub(super) fn file(&mut self, name: &str, text: &str) {
        self.files.insert(name.to_owned(), text.to_owned());
    }

    /// Understands a template and those that it defines.
    pub(super) fn add(&mut self, name: &str, text: &str) -> Result<()> {
        let pieces = cut(text).map_err(|f| f.during(format!("read {name}")))?;
        let mut pieces = pieces.into_iter();
        let (nodes, end) = self.block(&mut pieces).map_err(|f| f.during(format!("read {name}")))?;
        if let Some(end) = end {
            return Err(wrong(format!("{name} has {end:?} too many")));
        }
        self.named.insert(name.to_owned(), nodes);
        Ok(())
    }

    /// What a template gives for a value.
    pub(super) fn render(&self, name: &str, dot: &Value) -> Result<String> {
        let nodes = self.named.get(name).ok_or_else(|| wrong(format!("there is no {name}")))?;
        let mut scope = Scope { root: dot.clone(), variables: Vec::new() };
        let mut out = String::new();
        self.run(nodes, dot, &mut scope, &mut out)
            .map_err(|fault| fault.during(format!("render {name}")))?;
        Ok(out)
    }

    /// Nodes up to `end` or `else`, whose words are given back.
    fn block(
        &mut self,
        pieces: &mut std::vec::IntoIter<Piece>,
    ) -> Result<(Vec<Node>, Option<Vec<String>>)> {
        let mut nodes = Vec::new();
        while let Some(piece) = pieces.next() {
            let words = match piece {
                Piece::Text(text) => {
                    nodes.push(Node::Text(text));
                    continue;
                }
                Piece::Action(words) => words,
            };
            match words.first().map(String::as_str) {
                None => {}
                Some("end" | "else") => return Ok((nodes, Some(words))),
                Some("define") => {
                    let name = words.get(1).map(|name| name.trim_matches('"').to_owned());
                    let (body, _) = self.block(pieces)?;
                    self.named.insert(name.ok_or_else(|| wrong("a define without a name"))?, body);
                }
                Some("if") => nodes.push(self.branches(pieces, &words[1..], false)?),
                Some("with") => nodes.push(self.branches(pieces, &words[1..], true)?),
                Some("range") => {
                    let (names, over) = match words.iter().position(|word| word == ":=") {
                        Some(at) => {
                            let names = words[1..at].iter().filter(|word| *word != ",");
                            (names.map(|n| n[1..].to_owned()).collect(), &words[at + 1..])
                        }
                        None => (Vec::new(), &words[1..]),
                    };
                    let over = pipeline(over)?;
                    let (body, end) = self.block(pieces)?;
                    let otherwise = match end {
                        Some(words) if words[0] == "else" => self.block(pieces)?.0,
                        _ => Vec::new(),
                    };
                    nodes.push(Node::Range(names, over, body, otherwise));
                }
                Some(name) if name.starts_with('$') && words.get(1).is_some_and(|w| w == ":=") => {
                    nodes.push(Node::Set(name[1..].to_owned(), pipeline(&words[2..])?));
                }
                Some(_) => nodes.push(Node::Print(pipeline(&words)?)),
            }
        }
        Ok((nodes, None))
    }

    fn branches(
        &mut self,
        pieces: &mut std::vec::IntoIter<Piece>,
        condition: &[String],
        with: bool,
    ) -> Result<Node> {
        let mut cases = Vec::new();
        let mut condition = pipeline(condition)?;
        loop {
            let (body, end) = self.block(pieces)?;
            cases.push((condition, body));
            let words = end.ok_or_else(|| wrong("an if without its end"))?;
            match (words[0].as_str(), words.get(1).map(String::as_str)) {
                ("end", _) => return Ok(Node::If(cases, Vec::new(), with)),
                (_, Some("if")) => condition = pipeline(&words[2..])?,
                (_, None) => return Ok(Node::If(cases, self.block(pieces)?.0, with)),
                (_, Some(word)) => return Err(wrong(format!("else {word}"))),
            }
        }
    }

    fn run(&self, nodes: &[Node], dot: &Value, scope: &mut Scope, out: &mut String) -> Result<()> {
        let outside = scope.variables.len();
        for node in nodes {
            match node {
                Node::Text(text) => out.push_str(text),
                Node::Print(pipeline) => {
                    out.push_str(&functions::text(&self.value(pipeline, dot, scope)?));
                }
                Node::Set(name, pipeline) => {
                    let value = self.value(pipeline, dot, scope)?;
                    scope.variables.push((name.clone(), value));
                }
                Node::If(cases, otherwise, with) => {
                    let mut body = (otherwise, dot.clone());
                    for (condition, nodes) in cases {
                        let value = self.value(condition, dot, scope)?;
                        if functions::is_true(&value) {
                            body = (nodes, if *with { value } else { dot.clone() });
                            break;
                        }
                    }
                    self.run(body.0, &body.1, scope, out)?;
                }
                Node::Range(names, over, body, otherwise) => {
                    let over = self.value(over, dot, scope)?;
                    let items: Vec<(Value, Value)> = match over {
                        Value::Array(list) => {
                            list.into_iter().enumerate().map(|(i, v)| (i.into(), v)).collect()
                        }
                        Value::Object(map) => map.into_iter().map(|(k, v)| (k.into(), v)).collect(),
                        Value::Null => Vec::new(),
                        other => return Err(wrong(format!("range over {other}"))),
                    };
                    if items.is_empty() {
                        self.run(otherwise, dot, scope, out)?;
                    }
                    for (key, value) in items {
                        let before = scope.variables.len();
                        match names.as_slice() {
                            [] => {}
                            [name] => scope.variables.push((name.clone(), value.clone())),
                            [first, second, ..] => {
                                scope.variables.push((first.clone(), key));
                                scope.variables.push((second.clone(), value.clone()));
                            }
                        }
                        self.run(body, &value, scope, out)?;
                        scope.variables.truncate(before);
                    }
                }
            }
        }
        scope.variables.truncate(outside);
        Ok(())
    }

    fn value(&self, pipeline: &Pipeline, dot: &Value, scope: &Scope) -> Result<Value> {
        let mut before: Option<Value> = None;
        for command in pipeline {
            before = Some(self.command(command, before, dot, scope)?);
        }
        before.ok_or_else(|| wrong("an empty action"))
    }

    fn command(
        &self,
        command: &[Term],
        before: Option<Value>,
        dot: &Value,
        scope: &Scope,
    ) -> Result<Value> {
        let (first, rest) = command.split_first().ok_or_else(|| wrong("an empty command"))?;
        let term = |term: &Term| match term {
            Term::Value(value) => Ok(value.clone()),
            Term::Path(variable, fields) => scope.find(variable.as_deref(), fields, dot),
            Term::Nested(pipeline) => self.value(pipeline, dot, scope),
            Term::Function(name) => functions::call(name, &[]),
        };
        let mut arguments = rest.iter().map(term).collect::<Result<Vec<_>>>()?;
        arguments.extend(before);
        match first {
            Term::Function(name) if name == "include" => match arguments.as_slice() {
                [Value::String(name), of] => Ok(self.render(name, of)?.into()),
                other => Err(wrong(format!("include of {other:?}"))),
            },
            Term::Function(name) => functions::call(name, &arguments),
            Term::Path(None, fields) if fields.join(".") == "Files.Get" => {
                let name = arguments.first().and_then(Value::as_str).unwrap_or_default();
                let file = self.files.get(name).ok_or_else(|| wrong(format!("no file {name}")))?;
                Ok(file.clone().into())
            }
            _ if arguments.is_empty() => term(first),
            _ => Err(wrong(format!("{first:?} is no function"))),
        }
    }
}

/// What is known by name.
struct Scope {
    root: Value,
    variables: Vec<(String, Value)>,
}

impl Scope {
    fn find(&self, variable: Option<&str>, fields: &[String], dot: &Value) -> Result<Value> {
        let start = match variable {
            None => dot,
            Some("") => &self.root,
            Some(name) => {
                let found = self.variables.iter().rev().find(|(known, _)| known == name);
                &found.ok_or_else(|| wrong(format!("${name} is not known")))?.1
            }
        };
        let end = fields.iter().try_fold(start, |value, field| value.get(field));
        Ok(end.cloned().unwrap_or(Value::Null))
    }
}

/// Text and the words of actions.
fn cut(text: &str) -> Result<Vec<Piece>> {
    let mut pieces = Vec::new();
    let (mut rest, mut trim) = (text, false);
    loop {
        let (mut before, action) = match rest.split_once("{{") {
            None => (rest, None),
            Some((before, after)) => (before, Some(after)),
        };
        if trim {
            before = before.trim_start();
        }
        let Some(mut action) = action else {
            pieces.push(Piece::Text(before.to_owned()));
            return Ok(pieces);
        };
        if let Some(after) = action.strip_prefix("- ") {
            before = before.trim_end();
            action = after;
        }
        pieces.push(Piece::Text(before.to_owned()));
        if let Some(comment) = action.trim_start().strip_prefix("/*") {
            let (_, after) = comment.split_once("*/").ok_or_else(|| wrong("an open comment"))?;
            action = after;
        }
        let (words, after) = words(action)?;
        trim = words.last().is_some_and(|word| word == "-");
        let count = words.len() - usize::from(trim);
        pieces.push(Piece::Action(words.into_iter().take(count).collect()));
        rest = after;
    }
}

/// The words up to `}}`, and what comes after it.
fn words(action: &str) -> Result<(Vec<String>, &str)> {
    let mut words = Vec::new();
    let mut rest = action.trim_start();
    loop {
        if let Some(after) = rest.strip_prefix("}}") {
            return Ok((words, after));
        }
        let first = rest.chars().next().ok_or_else(|| wrong("an open action"))?;
        let length = match first {
            '"' | '`' => {
                let mut escaped = false;
                let end = rest[1..].char_indices().find(|(_, c)| {
                    let end = *c == first && !escaped;
                    escaped = *c == '\\' && !escaped && first == '"';
                    end
                });
                end.ok_or_else(|| wrong("an open string"))?.0 + 2
            }
            '(' | ')' | '|' | ',' => 1,
            ':' => 2,
            _ => {
                let end = |c: char| c.is_whitespace() || "()|,}\"`".contains(c);
                rest.find(end).unwrap_or(rest.len()).max(1)
            }
        };
        words.push(rest[..length].to_owned());
        rest = rest[length..].trim_start();
    }
}

fn pipeline(words: &[String]) -> Result<Pipeline> {
    let mut at = 0;
    let pipeline = commands(words, &mut at)?;
    if at < words.len() {
        return Err(wrong(format!("{words:?}")));
    }
    Ok(pipeline)
}

fn commands(words: &[String], at: &mut usize) -> Result<Pipeline> {
    let mut all = vec![Vec::new()];
    while let Some(word) = words.get(*at) {
        *at += 1;
        let term = match word.as_str() {
            "|" => {
                all.push(Vec::new());
                continue;
            }
            ")" => {
                *at -= 1;
                break;
            }
            "(" => {
                let nested = commands(words, at)?;
                if words.get(*at).is_none_or(|word| word != ")") {
                    return Err(wrong(format!("an open bracket in {words:?}")));
                }
                *at += 1;
                Term::Nested(nested)
            }
            word => term(word)?,
        };
        if let Some(command) = all.last_mut() {
            command.push(term);
        }
    }
    Ok(all)
}

fn term(word: &str) -> Result<Term> {
    let fields =
        |path: &str| path.split('.').filter(|f| !f.is_empty()).map(str::to_owned).collect();
    let constant = |value: Value| Ok(Term::Value(value));
    match word {
        "true" | "false" => constant((word == "true").into()),
        "nil" => constant(Value::Null),
        _ if word.starts_with('"') => {
            let text = serde_json::from_str(word).map_err(|e| wrong(format!("{word}: {e}")))?;
            constant(text)
        }
        _ if word.starts_with('`') => constant(word[1..word.len() - 1].into()),
        _ if word.starts_with('.') => Ok(Term::Path(None, fields(word))),
        _ if word.starts_with('$') => {
            let (name, path) = word[1..].split_once('.').unwrap_or((&word[1..], ""));
            Ok(Term::Path(Some(name.to_owned()), fields(path)))
        }
        _ if word.parse::<i64>().is_ok() => constant(word.parse::<i64>().unwrap_or(0).into()),
        _ => Ok(Term::Function(word.to_owned())),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn rendered(template: &str) -> Result<String> {
        let mut templates = Templates::default();
        templates.file("f", "text");
        templates.add("t", template)?;
        templates.render("t", &json!({"a": {"b": 1, "c": "x"}, "l": [1, 2], "no": false}))
    }

    #[test]
    fn templates_give_what_go_gives() {
        for (template, want) in [
            ("x {{ .a.c }} y", "x x y"),
            ("x \n {{- .a.b -}} \n y", "x1y"),
            ("{{- /* a {{ comment */ -}} x", "x"),
            ("{{ if .no }}1{{ else if .a }}2{{ else }}3{{ end }}", "2"),
            (
                "{{ if not .no }}1{{ end }}{{ with .a }}{{ .c }}{{ end }}{{ with .z }}2{{ end }}",
                "1x",
            ),
            ("{{ range $i, $v := .l }}{{ $i }}={{ $v }};{{ $.a.c }}{{ end }}", "0=1;x1=2;x"),
            ("{{ range $k, $v := .a }}{{ $k }}{{ $v }}{{ end }}", "b1cx"),
            ("{{ range .l }}{{ . }}{{ end }}", "12"),
            ("{{ define \"d\" }}<{{ .c }}>{{ end }}{{ include \"d\" .a | quote }}", "\"<x>\""),
            ("{{ `{{ $labels.x }}` }}", "{{ $labels.x }}"),
            ("{{ printf \"%s-%v\" .a.c 2 }}", "x-2"),
            ("{{ .z | default \"d\" }}{{ .a.c | default \"d\" }}", "dx"),
            ("{{ if and .a (eq .a.c \"x\") (gt (int .a.b) 0) }}y{{ end }}", "y"),
            ("{{ $v := .a.c }}{{ $v }}", "x"),
            ("{{ .Files.Get \"f\" | nindent 2 }}", "\n  text"),
            ("{{ toYaml .a | nindent 1 }}", "\n b: 1\n c: x"),
        ] {
            assert_eq!(rendered(template).unwrap(), want, "{template}");
        }
    }

    #[test]
    fn what_is_not_known_is_refused() {
        for template in
            ["{{ lookup 1 }}", "{{ $x }}", "{{ .a", "{{ include \"z\" . }}", "{{ end }}"]
        {
            assert!(rendered(template).is_err(), "{template}");
        }
    }
}
