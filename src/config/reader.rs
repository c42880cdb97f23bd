//! Finds keys in the file and in the environment, converts them, and collects what is wrong.

use std::{collections::BTreeMap, ops::Range};

use serde::de::DeserializeOwned;
use toml::{
    Spanned,
    de::{DeTable, DeValue, ValueDeserializer},
};

use super::{ConfigError, ENV_PREFIX, Key, Place};

/// How alike a name must be to be suggested.
const ALIKE: f64 = 0.75;

type Entries<'t> = Vec<(String, Range<usize>, Spanned<DeValue<'t>>)>;

/// The file, the environment, and what was found so far.
pub(super) struct Reader<'t> {
    text: &'t str,
    /// Sections of the file: name, where, keys.
    sections: Vec<(String, Range<usize>, Entries<'t>)>,
    variables: BTreeMap<String, String>,
    faults: Vec<ConfigError>,
    keys: Vec<Key>,
}

impl<'t> Reader<'t> {
    pub(super) fn new(text: &'t str, variables: BTreeMap<String, String>) -> Self {
        let mut this = Self { text, sections: Vec::new(), variables, faults: Vec::new(), keys: Vec::new() };
        let (document, errors) = DeTable::parse_recoverable(text);
        for error in errors {
            let place = error.span().map_or(Place::File, |span| Place::Line(this.line(span.start)));
            this.fault(place, "", error.message().to_owned(), "");
        }
        for (name, value) in document.into_inner() {
            let span = name.span();
            let (name, value) = (name.into_inner().into_owned(), value.into_inner());
            let DeValue::Table(table) = value else {
                let place = Place::Line(this.line(span.start));
                this.fault(place, &name, "a key outside any section".to_owned(), "every key stands in a [section]");
                continue;
            };
            let keys = table.into_iter().map(|(key, value)| (key.as_ref().to_string(), key.span(), value)).collect();
            this.sections.push((name, span, keys));
        }
        this
    }

    fn line(&self, offset: usize) -> usize {
        self.text.bytes().take(offset).filter(|&b| b == b'\n').count() + 1
    }

    fn fault(&mut self, place: Place, key: &str, what: String, legal: &str) {
        self.faults.push(ConfigError { place, key: key.to_owned(), what, legal: legal.to_owned() });
    }

    /// A fault of a key that is right by itself but does not fit another.
    pub(super) fn misfit(&mut self, section: &'static str, name: &'static str, what: &str) {
        let legal = self.keys.iter().find(|key| key.section == section && key.name == name).map_or("", |key| key.legal);
        let place = self.place(section, name);
        self.fault(place, &format!("{section}.{name}"), what.to_owned(), legal);
    }

    fn place(&self, section: &str, name: &str) -> Place {
        let variable = variable(section, name);
        if self.variables.contains_key(&variable) {
            return Place::Variable(variable);
        }
        let found = self.sections.iter().find(|(section_name, ..)| section_name == section);
        found.map_or(Place::File, |(_, span, keys)| {
            let key = keys.iter().find(|(key, ..)| key == name);
            Place::Line(self.line(key.map_or(span, |(_, span, _)| span).start))
        })
    }

    /// Reads a key: `check` makes of its value what the settings hold, or says what is wrong
    /// with it. A key that is absent, or wrong, has `default`'s value.
    ///
    /// # Panics
    /// When `default` is not legal.
    pub(super) fn key<T: DeserializeOwned, U>(
        &mut self,
        section: &'static str,
        name: &'static str,
        default: T,
        legal: &'static str,
        check: impl Fn(T) -> Result<U, String>,
    ) -> U {
        self.keys.push(Key { section, name, legal });
        match self.value::<T>(section, name).and_then(|value| value.map(&check).transpose()) {
            Ok(Some(value)) => return value,
            Ok(None) => (),
            Err(what) => {
                let place = self.place(section, name);
                self.fault(place, &format!("{section}.{name}"), what, legal);
            }
        }
        check(default).expect("a default is legal")
    }

    fn value<T: DeserializeOwned>(&self, section: &str, name: &str) -> Result<Option<T>, String> {
        if let Some(text) = self.variables.get(&variable(section, name)) {
            return from_variable(text).map(Some);
        }
        let found = self.sections.iter().find(|(section_name, ..)| section_name == section);
        let Some((_, _, value)) = found.and_then(|(_, _, keys)| keys.iter().find(|(key, ..)| key == name)) else {
            return Ok(None);
        };
        let source = self.text.get(value.span()).unwrap_or_default();
        T::deserialize(ValueDeserializer::from(value.clone()))
            .map(Some)
            .map_err(|error| format!("{}: {}", shortened(source), error.message().trim()))
    }

    /// Names that are no key's, then everything that was wrong, in the file's order.
    pub(super) fn finish(mut self) -> Vec<ConfigError> {
        let mut unknown = Vec::new();
        for (section, span, keys) in &self.sections {
            let known: Vec<&str> = self.keys.iter().filter(|key| key.section == section).map(|key| key.name).collect();
            if known.is_empty() {
                let mut sections: Vec<&str> = self.keys.iter().map(|key| key.section).collect();
                sections.dedup();
                let legal = format!("{}the sections are {}", suggestion(section, &sections), sections.join(", "));
                unknown.push((span.start, section.clone(), "no such section", legal));
                continue;
            }
            for (key, span, _) in keys.iter().filter(|(key, ..)| !known.contains(&key.as_str())) {
                let legal = format!("{}the keys of [{section}] are {}", suggestion(key, &known), known.join(", "));
                unknown.push((span.start, format!("{section}.{key}"), "no such key", legal));
            }
        }
        for (offset, key, what, legal) in unknown {
            let place = Place::Line(self.line(offset));
            self.fault(place, &key, what.to_owned(), &legal);
        }
        let known: Vec<String> = self.keys.iter().map(|key| variable(key.section, key.name)).collect();
        let known: Vec<&str> = known.iter().map(String::as_str).collect();
        let strangers: Vec<String> =
            self.variables.keys().filter(|name| !known.contains(&name.as_str())).cloned().collect();
        for name in strangers {
            let legal = format!("{}names are {ENV_PREFIX}SECTION__KEY", suggestion(&name, &known));
            self.fault(Place::Variable(name), "", "no such key".to_owned(), &legal);
        }
        self.faults.sort();
        self.faults
    }

    pub(super) fn keys(&self) -> &[Key] {
        &self.keys
    }
}

/// The environment variable of a key.
fn variable(section: &str, name: &str) -> String {
    format!("{ENV_PREFIX}{}__{}", section.to_uppercase(), name.to_uppercase())
}

/// A variable's text is a TOML value, a bare string, or a list without brackets.
fn from_variable<T: DeserializeOwned>(text: &str) -> Result<T, String> {
    let quoted = toml::Value::from(text).to_string();
    let strings: Vec<&str> = text.split(',').map(str::trim).filter(|item| !item.is_empty()).collect();
    let strings = toml::Value::from(strings).to_string();
    let forms = [text.to_owned(), quoted, format!("[{text}]"), strings];
    let parsed = forms.iter().find_map(|form| T::deserialize(ValueDeserializer::parse(form).ok()?).ok());
    parsed.ok_or_else(|| format!("{} is not of the right type", shortened(text)))
}

fn shortened(text: &str) -> String {
    let text = text.trim().replace('\n', " ");
    if text.chars().count() > 60 { text.chars().take(57).chain("...".chars()).collect() } else { text }
}

fn suggestion(name: &str, known: &[&str]) -> String {
    let alike = known.iter().map(|other| (strsim::jaro_winkler(name, other), other));
    let best = alike.filter(|(score, _)| *score >= ALIKE).max_by(|a, b| a.0.total_cmp(&b.0));
    best.map_or_else(String::new, |(_, other)| format!("did you mean {other}? "))
}
