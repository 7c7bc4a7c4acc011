//! YAML text as a tree in which every value knows its line and column.
//!
//! It refuses what would make a file mean something else than it seems to say: anchors, aliases, tags, duplicate
//! keys, control characters, and depth or size without end. It does not know which fields there are: that is
//! `super::decode`.

use std::collections::HashMap;

use saphyr_parser::{Event, Parser, ScalarStyle, ScanError, Span};

/// The largest document: a service with a thousand routes takes a tenth of it, and what is pushed is held in memory
/// by every sidecar.
pub const DOCUMENT_BYTES_MAX: usize = 1024 * 1024;

/// The deepest nesting: the language itself needs nine levels; the tree is walked by recursion.
const DEPTH_MAX: usize = 64;

/// How many problems of one document are told: nobody reads more at once, and each costs another reading.
pub(super) const PROBLEMS_MAX: usize = 50;

/// A place in a file: line and column, both counted from 1, the column in characters.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Mark {
    pub(super) line: usize,
    pub(super) column: usize,
}

/// A problem before it knows its file.
#[derive(Clone, Debug)]
pub(super) struct Fault {
    pub(super) mark: Mark,
    pub(super) path: String,
    pub(super) message: String,
}

/// A value and where it begins.
#[derive(Clone, Debug)]
pub(super) struct Node {
    pub(super) value: Value,
    pub(super) mark: Mark,
    pub(super) state: State,
    /// Fields that an unknown field of this mapping was probably meant to be: they are not missing.
    pub(super) excused: Vec<&'static str>,
}

/// What a node holds.
#[derive(Clone, Debug)]
pub(super) enum Value {
    /// A single value, and whether it stands without quotes.
    Scalar { text: String, plain: bool },
    /// A list.
    Sequence(Vec<Node>),
    /// Fields, in the order written.
    Mapping(Vec<Entry>),
}

/// What reading has made of a node so far.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum State {
    /// Nothing is wrong with it yet.
    Whole,
    /// A problem with it was told: reading passes it by, so that the problem is told once.
    Broken,
    /// It stands for a required field that is missing or broken, so that the rest can be read.
    Filler,
}

/// A field of a mapping.
#[derive(Clone, Debug)]
pub(super) struct Entry {
    pub(super) key: String,
    pub(super) key_mark: Mark,
    pub(super) value: Node,
}

impl Node {
    pub(super) const fn new(value: Value, mark: Mark) -> Self {
        Self {
            value,
            mark,
            state: State::Whole,
            excused: Vec::new(),
        }
    }

    /// The fields, if it is a mapping.
    pub(super) fn entries(&self) -> &[Entry] {
        match &self.value {
            Value::Mapping(entries) => entries,
            Value::Scalar { .. } | Value::Sequence(_) => &[],
        }
    }

    /// The items, if it is a list.
    pub(super) fn items(&self) -> &[Self] {
        match &self.value {
            Value::Sequence(items) => items,
            Value::Scalar { .. } | Value::Mapping(_) => &[],
        }
    }

    /// The field of that name, whatever its state.
    pub(super) fn get(&self, key: &str) -> Option<&Entry> {
        self.entries().iter().find(|entry| entry.key == key)
    }

    /// The text, if it is a single value.
    pub(super) fn text(&self) -> Option<&str> {
        match &self.value {
            Value::Scalar { text, .. } => Some(text),
            Value::Sequence(_) | Value::Mapping(_) => None,
        }
    }
}

/// What became of a text.
#[derive(Debug, Default)]
pub(super) struct Parsed {
    /// The tree. None if there is nothing but comments, or if the text cannot be understood.
    pub(super) root: Option<Node>,
    /// What is wrong with it.
    pub(super) faults: Vec<Fault>,
}

/// Reads the text of one document, whose first line is line `first_line` of its file.
pub(super) fn parse(text: &str, first_line: usize) -> Parsed {
    let (lines, last) = text.lines().fold((0, ""), |(count, _), line| (count + 1, line));
    let end = Mark {
        line: first_line + lines.max(1) - 1,
        column: last.chars().count() + 1,
    };
    let mut builder = Builder {
        first_line,
        end,
        stack: Vec::new(),
        root: None,
        faults: Vec::new(),
    };
    let understood = builder.unreadable(text).is_none() && builder.read(text);
    let root = if understood { builder.root } else { None };
    Parsed {
        root,
        faults: builder.faults,
    }
}

/// A list or mapping whose end has not come yet.
enum Frame {
    Sequence {
        mark: Mark,
        state: State,
        items: Vec<Node>,
    },
    Mapping {
        mark: Mark,
        state: State,
        entries: Vec<Entry>,
        seen: HashMap<String, usize>,
        key: Option<Key>,
    },
}

/// A key whose value has not come yet.
struct Key {
    text: String,
    mark: Mark,
    /// Its value is read and thrown away, for the key itself was refused.
    refused: bool,
}

struct Builder {
    first_line: usize,
    /// The place behind the last character.
    end: Mark,
    stack: Vec<Frame>,
    root: Option<Node>,
    faults: Vec<Fault>,
}

impl Builder {
    /// Refuses what the parser would misread: it takes NUL for the end, and a lone carriage return for a new line
    /// where editors see none.
    fn unreadable(&mut self, text: &str) -> Option<()> {
        if text.len() > DOCUMENT_BYTES_MAX {
            let mark = Mark {
                line: self.first_line,
                column: 1,
            };
            let message = format!(
                "the document is {} bytes long; at most {DOCUMENT_BYTES_MAX} are read: split it by service",
                text.len()
            );
            self.faults.push(Fault {
                mark,
                path: String::new(),
                message,
            });
            return Some(());
        }
        for (index, line) in text.split('\n').enumerate() {
            let line = line.strip_suffix('\r').unwrap_or(line);
            if let Some((column, control)) = line
                .chars()
                .enumerate()
                .find(|(_, c)| c.is_control() && *c != '\t')
            {
                let mark = Mark {
                    line: self.first_line + index,
                    column: column + 1,
                };
                let message = format!(
                    "the control character U+{:04X} may not stand in a file; inside double quotes write it as an escape",
                    u32::from(control)
                );
                self.faults.push(Fault {
                    mark,
                    path: String::new(),
                    message,
                });
                return Some(());
            }
        }
        None
    }

    /// Reads every event. False: the rest cannot be understood.
    fn read(&mut self, text: &str) -> bool {
        let mut documents = 0;
        for event in Parser::new_from_str(text) {
            let (event, span) = match event {
                Ok(read) => read,
                Err(error) => {
                    self.syntax(&error);
                    return false;
                }
            };
            if matches!(event, Event::DocumentStart(_)) {
                documents += 1;
            }
            let mark = self.mark(span);
            if documents > 1 {
                self.fault(
                    mark,
                    "a second document begins here; documents are parted by a line `---`",
                );
                return false;
            }
            if !self.take(event, mark) || self.faults.len() >= PROBLEMS_MAX {
                return false;
            }
        }
        true
    }

    /// Takes one event into the tree. False: the rest cannot be understood.
    fn take(&mut self, event: Event<'_>, mark: Mark) -> bool {
        match event {
            Event::Alias(_) => {
                self.fault(
                    mark,
                    "aliases (`*name`) are not allowed; write the value out here",
                );
                self.finish(Node {
                    state: State::Broken,
                    ..Node::new(scalar(""), mark)
                });
            }
            Event::Scalar(text, style, anchor, tag) => {
                let state = self.plain_words(mark, anchor, tag.map(|tag| tag.to_string()));
                if self.wants_key() {
                    self.key(text.into_owned(), mark);
                } else {
                    let plain = style == ScalarStyle::Plain;
                    let value = Value::Scalar {
                        text: text.into_owned(),
                        plain,
                    };
                    self.finish(Node {
                        state,
                        ..Node::new(value, mark)
                    });
                }
            }
            Event::SequenceStart(anchor, tag) => {
                let state = self.plain_words(mark, anchor, tag.map(|tag| tag.to_string()));
                return self.open(
                    Frame::Sequence {
                        mark,
                        state,
                        items: Vec::new(),
                    },
                    mark,
                );
            }
            Event::MappingStart(anchor, tag) => {
                let state = self.plain_words(mark, anchor, tag.map(|tag| tag.to_string()));
                let (entries, seen) = (Vec::new(), HashMap::new());
                return self.open(
                    Frame::Mapping {
                        mark,
                        state,
                        entries,
                        seen,
                        key: None,
                    },
                    mark,
                );
            }
            Event::SequenceEnd | Event::MappingEnd => self.close(),
            Event::Nothing
            | Event::StreamStart
            | Event::StreamEnd
            | Event::DocumentStart(_)
            | Event::DocumentEnd => {}
        }
        true
    }

    /// Refuses an anchor and a tag. A value under a tag may mean anything, so it is passed by; an anchored one is
    /// read on as it stands.
    fn plain_words(&mut self, mark: Mark, anchor: usize, tag: Option<String>) -> State {
        if anchor != 0 {
            self.fault(
                mark,
                "anchors (`&name`) are not allowed; write each value out where it is used",
            );
        }
        let Some(tag) = tag else {
            return State::Whole;
        };
        let tag = tag.replacen("tag:yaml.org,2002:!", "!!", 1);
        self.fault(
            mark,
            &format!("tags (`{}`) are not allowed; write the value alone", shown(&tag)),
        );
        State::Broken
    }

    fn wants_key(&self) -> bool {
        matches!(self.stack.last(), Some(Frame::Mapping { key: None, .. }))
    }

    fn key(&mut self, text: String, mark: Mark) {
        let mut first = None;
        if let Some(Frame::Mapping { seen, key, .. }) = self.stack.last_mut() {
            first = seen.get(&text).copied();
            seen.entry(text.clone()).or_insert(mark.line);
            *key = Some(Key {
                text,
                mark,
                refused: first.is_some(),
            });
        }
        if let Some(line) = first {
            self.fault(
                mark,
                &format!("this field is given twice; the first is on line {line}"),
            );
        }
    }

    fn open(&mut self, frame: Frame, mark: Mark) -> bool {
        self.stack.push(frame);
        if self.stack.len() > DEPTH_MAX {
            self.stack.pop();
            self.fault(mark, &too_deep());
            return false;
        }
        true
    }

    fn close(&mut self) {
        let node = match self.stack.pop() {
            Some(Frame::Sequence { mark, state, items }) => Node {
                state,
                ..Node::new(Value::Sequence(items), mark)
            },
            Some(Frame::Mapping {
                mark, state, entries, ..
            }) => Node {
                state,
                ..Node::new(Value::Mapping(entries), mark)
            },
            None => return,
        };
        self.finish(node);
    }

    /// Puts a finished node where it belongs.
    fn finish(&mut self, node: Node) {
        if self.wants_key() {
            let mark = node.mark;
            if node.state == State::Whole {
                self.fault(mark, "a list or a mapping cannot be the name of a field");
            }
            if let Some(Frame::Mapping { key, .. }) = self.stack.last_mut() {
                *key = Some(Key {
                    text: "?".to_owned(),
                    mark,
                    refused: true,
                });
            }
            return;
        }
        match self.stack.last_mut() {
            None => self.root = Some(node),
            Some(Frame::Sequence { items, .. }) => items.push(node),
            Some(Frame::Mapping { entries, key, .. }) => {
                if let Some(key) = key.take().filter(|key| !key.refused) {
                    entries.push(Entry {
                        key: key.text,
                        key_mark: key.mark,
                        value: node,
                    });
                }
            }
        }
    }

    fn syntax(&mut self, error: &ScanError) {
        let marker = *error.marker();
        let mark = self.mark(Span::empty(marker));
        let info = error.info();
        let message = if info.contains("recursion limit") {
            too_deep()
        } else {
            format!("this is not valid YAML: {info}")
        };
        self.fault(mark, &message);
    }

    /// Where an event begins. What is missed at the end is missed behind the last line, not below it.
    fn mark(&self, span: Span) -> Mark {
        let line = self.first_line + span.start.line().max(1) - 1;
        Mark {
            line,
            column: span.start.col() + 1,
        }
        .min(self.end)
    }

    fn fault(&mut self, mark: Mark, message: &str) {
        let path = self.path();
        self.faults.push(Fault {
            mark,
            path,
            message: message.to_owned(),
        });
    }

    /// The path of what is being read.
    fn path(&self) -> String {
        let mut path = String::new();
        for frame in &self.stack {
            match frame {
                Frame::Sequence { items, .. } => push_index(&mut path, items.len()),
                Frame::Mapping { key: Some(key), .. } => push_field(&mut path, &key.text),
                Frame::Mapping { key: None, .. } => {}
            }
        }
        path
    }
}

fn scalar(text: &str) -> Value {
    Value::Scalar {
        text: text.to_owned(),
        plain: true,
    }
}

fn too_deep() -> String {
    format!("nested too deeply; at most {DEPTH_MAX} levels are read")
}

/// Adds a field to a path.
pub(super) fn push_field(path: &mut String, key: &str) {
    if !path.is_empty() {
        path.push('.');
    }
    path.push_str(&shown(key));
}

/// Adds an index to a path.
pub(super) fn push_index(path: &mut String, index: usize) {
    path.push('[');
    path.push_str(&index.to_string());
    path.push(']');
}

/// How much of a value is repeated in a message: enough to know it again.
const SHOWN_MAX: usize = 60;

/// A text from a file as it is repeated in a message: on one line and not too long.
pub(super) fn shown(text: &str) -> String {
    let mut shown = String::new();
    for c in text.chars().take(SHOWN_MAX) {
        if c.is_control() {
            shown.extend(c.escape_debug());
        } else {
            shown.push(c);
        }
    }
    if text.chars().nth(SHOWN_MAX).is_some() {
        shown.push('…');
    }
    shown
}
