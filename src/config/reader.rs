//! Finds keys in the file and in the environment, converts their values, and collects what is wrong.

use std::{collections::BTreeMap, ops::Range};

use serde::de::DeserializeOwned;
use toml::{
    Spanned,
    de::{DeTable, DeValue, ValueDeserializer},
};

use super::{ConfigError, ConfigKey, ConfigPlace, ENV_PREFIX, FileForm};

/// How similar to an unknown name a known name must be to be suggested: a Jaro-Winkler similarity from 0 to 1.
const MIN_SIMILARITY: f64 = 0.75;
/// What an error says of a variable that is empty, where that is not legal.
const EMPTY: &str = "the variable is empty: unset it to use the value of the file";
/// A value is shortened to this many characters in an error.
const MAX_SHOWN: usize = 60;

/// A section of the file. Each span is the range of a name's bytes in the text.
struct FileSection<'t> {
    name: String,
    span: Range<usize>,
    entries: Vec<(String, Range<usize>, Spanned<DeValue<'t>>)>,
}

/// The file and the environment, the keys that were read from them, and the errors so far.
///
/// Every key of the program is read once, whether the file has it or not. So the reader knows all keys at the end,
/// and [`finish`](Self::finish) can report the names that are none.
pub(super) struct KeyReader<'t> {
    text: &'t str,
    sections: Vec<FileSection<'t>>,
    variables: BTreeMap<String, String>,
    faults: Vec<ConfigError>,
    keys: Vec<ConfigKey>,
}

impl<'t> KeyReader<'t> {
    /// A reader of `text` and of `variables`, whose names begin with [`ENV_PREFIX`]. Text that is not TOML is an error
    /// of the configuration; what could be parsed of it is read.
    pub(super) fn new(text: &'t str, variables: BTreeMap<String, String>) -> Self {
        let mut this = Self { text, sections: Vec::new(), variables, faults: Vec::new(), keys: Vec::new() };
        let (document, errors) = DeTable::parse_recoverable(text);
        for error in errors {
            let place = error.span().map_or(ConfigPlace::File, |span| ConfigPlace::Line(this.line(span.start)));
            this.fault(place, "", error.message().to_owned(), "");
        }
        for (name, value) in document.into_inner() {
            let span = name.span();
            let (name, value) = (name.into_inner().into_owned(), value.into_inner());
            let DeValue::Table(table) = value else {
                let place = ConfigPlace::Line(this.line(span.start));
                this.fault(place, &name, "a key outside any section".to_owned(), "every key is in a [section]");
                continue;
            };
            let entries = table.into_iter().map(|(key, value)| (key.as_ref().to_string(), key.span(), value)).collect();
            this.sections.push(FileSection { name, span, entries });
        }
        this
    }

    /// The line of a byte of the text, counted from 1.
    fn line(&self, offset: usize) -> usize {
        self.text.bytes().take(offset).filter(|&b| b == b'\n').count() + 1
    }

    fn fault(&mut self, place: ConfigPlace, key: &str, what: String, legal: &str) {
        self.faults.push(ConfigError { place, key: key.to_owned(), what, legal: legal.to_owned() });
    }

    /// Reports a key whose value is legal by itself, but does not fit the value of another key.
    pub(super) fn conflict(&mut self, section: &'static str, name: &'static str, what: &str) {
        let legal = self.keys.iter().find(|key| key.section == section && key.name == name).map_or("", |key| key.legal);
        let place = self.place(section, name);
        self.fault(place, &format!("{section}.{name}"), what.to_owned(), legal);
    }

    fn file_section(&self, name: &str) -> Option<&FileSection<'t>> {
        self.sections.iter().find(|section| section.name == name)
    }

    /// Where a key has its value from. A key that is absent is reported at the head of its section.
    fn place(&self, section: &str, name: &str) -> ConfigPlace {
        let variable = variable(section, name);
        if self.variables.contains_key(&variable) {
            return ConfigPlace::Variable(variable);
        }
        self.file_section(section).map_or(ConfigPlace::File, |section| {
            let key = section.entries.iter().find(|(key, ..)| key == name);
            ConfigPlace::Line(self.line(key.map_or(&section.span, |(_, span, _)| span).start))
        })
    }

    /// Reads a key. `check` converts its value to what the settings hold, or returns what is wrong with it.
    ///
    /// Returns the converted value of `default` if the key is absent. It does so, too, if the value is wrong, so that
    /// the other keys are read and all errors are found.
    ///
    /// # Panics
    /// If `default` is not legal.
    pub(super) fn key<T: DeserializeOwned, U>(
        &mut self,
        section: &'static str,
        name: &'static str,
        default: T,
        legal: &'static str,
        check: impl Fn(T) -> Result<U, String>,
    ) -> U {
        self.optional(section, name, legal, &check).unwrap_or_else(|| check(default).expect("a default is legal"))
    }

    /// Reads a key that has no default: it is an error that it is absent.
    ///
    /// Returns `U::default()` if the key is absent or wrong, so that the other keys are read and all errors are found.
    pub(super) fn required<T: DeserializeOwned, U: Default>(
        &mut self,
        section: &'static str,
        name: &'static str,
        legal: &'static str,
        check: impl Fn(T) -> Result<U, String>,
    ) -> U {
        let faults = self.faults.len();
        let value = self.optional(section, name, legal, check);
        if value.is_none() && self.faults.len() == faults {
            self.conflict(section, name, "the key is missing, and it has no default");
        }
        value.unwrap_or_default()
    }

    /// Reads a key. Returns `None` if it is absent, or if it is wrong, which is an error of the configuration.
    fn optional<T: DeserializeOwned, U>(
        &mut self,
        section: &'static str,
        name: &'static str,
        legal: &'static str,
        check: impl Fn(T) -> Result<U, String>,
    ) -> Option<U> {
        self.keys.push(ConfigKey { section, name, legal });
        self.value::<T>(section, name).and_then(|value| value.map(check).transpose()).unwrap_or_else(|what| {
            // Where "" is not a legal string, the variable is empty by mistake.
            let is_empty = self.variables.get(&variable(section, name)).is_some_and(|text| text.trim().is_empty());
            let what = if is_empty && !what.starts_with(EMPTY) { EMPTY.to_owned() } else { what };
            let place = self.place(section, name);
            self.fault(place, &format!("{section}.{name}"), what, legal);
            None
        })
    }

    /// The form of the file.
    pub(super) fn form(&self) -> FileForm {
        let sections = self.sections.iter().map(|section| (section.name.clone(), self.line(section.span.start)));
        FileForm { sections: sections.collect(), has_last_line_end: self.text.ends_with('\n') }
    }

    /// The value of a key by its variable, else by the file; `None` if both are absent.
    fn value<T: DeserializeOwned>(&self, section: &str, name: &str) -> Result<Option<T>, String> {
        if let Some(text) = self.variables.get(&variable(section, name)) {
            return from_variable(text).map(Some);
        }
        let section = self.file_section(section);
        let Some((_, _, value)) = section.and_then(|section| section.entries.iter().find(|(key, ..)| key == name))
        else {
            return Ok(None);
        };
        let source = self.text.get(value.span()).unwrap_or_default();
        T::deserialize(ValueDeserializer::from(value.clone()))
            .map(Some)
            .map_err(|error| format!("{}: {}", shortened(source), error.message().trim()))
    }

    /// Adds the names that are not a key, and returns all errors, ordered by their place. All keys must have been read.
    pub(super) fn finish(mut self) -> Vec<ConfigError> {
        let mut unknown = Vec::new();
        for FileSection { name: section, span, entries } in &self.sections {
            let known: Vec<&str> = self.keys.iter().filter(|key| key.section == section).map(|key| key.name).collect();
            if known.is_empty() {
                let mut sections: Vec<&str> = self.keys.iter().map(|key| key.section).collect();
                sections.dedup();
                let legal = format!("{}the sections are {}", suggestion(section, &sections), sections.join(", "));
                unknown.push((span.start, section.clone(), "no such section", legal));
                continue;
            }
            for (key, span, _) in entries.iter().filter(|(key, ..)| !known.contains(&key.as_str())) {
                let legal = format!("{}the keys of [{section}] are {}", suggestion(key, &known), known.join(", "));
                unknown.push((span.start, format!("{section}.{key}"), "no such key", legal));
            }
        }
        for (offset, key, what, legal) in unknown {
            let place = ConfigPlace::Line(self.line(offset));
            self.fault(place, &key, what.to_owned(), &legal);
        }
        let known: Vec<String> = self.keys.iter().map(|key| variable(key.section, key.name)).collect();
        let known: Vec<&str> = known.iter().map(String::as_str).collect();
        let unknown: Vec<String> =
            self.variables.keys().filter(|name| !known.contains(&name.as_str())).cloned().collect();
        for name in unknown {
            let legal = format!("{}names are {ENV_PREFIX}SECTION__KEY", suggestion(&name, &known));
            self.fault(ConfigPlace::Variable(name), "", "no such key".to_owned(), &legal);
        }
        self.faults.sort();
        self.faults
    }

    /// The keys that were read so far, in the order of their reading.
    pub(super) fn keys(&self) -> &[ConfigKey] {
        &self.keys
    }
}

/// The name of a key's environment variable.
fn variable(section: &str, name: &str) -> String {
    format!("{ENV_PREFIX}{}__{}", section.to_uppercase(), name.to_uppercase())
}

/// Converts the text of a variable. It may be a TOML value (`12`, `["a", "b"]`), a string without quotes (`3s`), a list
/// without brackets (`1533,8082`), or a list of strings without both (`a:1533, b:1533`).
///
/// A variable that is empty is the empty string, if the key may have it, and nothing else: a list is empty only if it is
/// written `[]`, because a variable is often empty by mistake.
fn from_variable<T: DeserializeOwned>(text: &str) -> Result<T, String> {
    let read = |form: &String| T::deserialize(ValueDeserializer::parse(form).ok()?).ok();
    let mut forms = vec![text.to_owned(), toml::Value::from(text).to_string()];
    let items: Vec<&str> = text.split(',').map(str::trim).filter(|item| !item.is_empty()).collect();
    if !items.is_empty() {
        forms.extend([format!("[{text}]"), toml::Value::from(items).to_string()]);
    }
    forms.iter().find_map(read).ok_or_else(|| {
        if !text.trim().is_empty() {
            return format!("{} is not of the right type", shortened(text));
        }
        let or = if read(&"[]".to_owned()).is_some() { ", or write [] for an empty list" } else { "" };
        format!("{EMPTY}{or}")
    })
}

/// A value as an error shows it: on one line, and not too long.
fn shortened(text: &str) -> String {
    let text = text.trim().replace('\n', " ");
    let is_long = text.chars().count() > MAX_SHOWN;
    if is_long { text.chars().take(MAX_SHOWN - 3).chain("...".chars()).collect() } else { text }
}

/// `did you mean NAME? `, with the known name that is the most similar; empty if none is similar.
fn suggestion(name: &str, known: &[&str]) -> String {
    let scored = known.iter().map(|other| (strsim::jaro_winkler(name, other), other));
    let best = scored.filter(|(score, _)| *score >= MIN_SIMILARITY).max_by(|a, b| a.0.total_cmp(&b.0));
    best.map_or_else(String::new, |(_, other)| format!("did you mean {other}? "))
}
