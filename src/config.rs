//! The configuration database: a TOML file whose sections are those of the Sametime
//! configuration database, and environment variables on top.
//!
//! Every fault is found in one go and says file, line, key, what is wrong and what is legal.
//! `reader` finds and converts single keys, `schema` names them all and makes the settings
//! that the floors below have.

use std::{
    collections::BTreeMap,
    fmt,
    path::{Path, PathBuf},
};

use serde::Deserialize;

use crate::{admin, community, ingress, mux};

mod ceiling;
mod legal;
mod reader;
mod schema;

pub use ceiling::Ceiling;

/// What every environment variable of a key begins with.
pub const ENV_PREFIX: &str = "SAMETIME_MUX__";

/// How logs are written.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum LogFormat {
    /// For people.
    Text,
    /// One JSON object a line.
    Json,
}

/// How much is logged.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum LogLevel {
    /// Nothing.
    Off,
    /// What failed.
    Error,
    /// What an admin should look into.
    Warn,
    /// A line for each session.
    Info,
    /// A line for each oddity.
    Debug,
    /// Everything.
    Trace,
}

/// Settings of the log.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct LogSettings {
    /// Text or JSON.
    pub format: LogFormat,
    /// How much.
    pub level: LogLevel,
}

/// Checked settings, for each floor its own.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Settings {
    /// The file that they were read from.
    pub file: PathBuf,
    /// The ways in.
    pub ingress: ingress::Settings,
    /// The core.
    pub mux: mux::Settings,
    /// The links.
    pub community: community::Settings,
    /// The admin endpoint.
    pub admin: admin::Settings,
    /// The log.
    pub log: LogSettings,
}

/// Where a fault stands.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub enum Place {
    /// A line of the file, counted from 1.
    Line(usize),
    /// The file as a whole.
    File,
    /// An environment variable.
    Variable(String),
}

/// One thing that is wrong.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct Fault {
    /// Where.
    pub place: Place,
    /// `section.key`; empty where it is no single key's.
    pub key: String,
    /// What is wrong.
    pub what: String,
    /// What is legal.
    pub legal: String,
}

/// Everything that is wrong, in the file's order.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Faults {
    /// The file.
    pub file: PathBuf,
    /// At least one.
    pub faults: Vec<Fault>,
}

/// One line for each fault: `FILE:LINE: key: what is wrong (what is legal)`.
impl fmt::Display for Faults {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (i, Fault { place, key, what, legal }) in self.faults.iter().enumerate() {
            if i > 0 {
                writeln!(f)?;
            }
            match place {
                Place::Line(line) => write!(f, "{}:{line}: ", self.file.display())?,
                Place::File => write!(f, "{}: ", self.file.display())?,
                Place::Variable(name) => write!(f, "environment variable {name}: ")?,
            }
            if !key.is_empty() {
                write!(f, "{key}: ")?;
            }
            write!(f, "{what}")?;
            if !legal.is_empty() {
                write!(f, " ({legal})")?;
            }
        }
        Ok(())
    }
}

impl std::error::Error for Faults {}

/// A key, for documents and tests.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Key {
    /// Its section.
    pub section: &'static str,
    /// Its name.
    pub name: &'static str,
    /// What is legal.
    pub legal: &'static str,
}

/// Reads `file`, with this process's environment on top.
///
/// # Errors
/// Every fault; one when the file can't be read.
pub fn load(file: &Path) -> Result<Settings, Faults> {
    let text = std::fs::read_to_string(file).map_err(|error| Faults {
        file: file.to_owned(),
        faults: vec![Fault {
            place: Place::File,
            key: String::new(),
            what: format!("the configuration database can't be read: {error}"),
            legal: "name another with --config FILE or SAMETIME_MUX_CONFIG".to_owned(),
        }],
    })?;
    // A value that is no Unicode is seen all the same, and found wrong.
    let lossy = |text: std::ffi::OsString| text.to_string_lossy().into_owned();
    parse(&text, file, std::env::vars_os().map(|(name, value)| (lossy(name), lossy(value))))
}

/// Reads `text`, which came from `file`, with `environment` on top.
///
/// # Errors
/// Every fault.
pub fn parse(text: &str, file: &Path, environment: impl Iterator<Item = (String, String)>) -> Result<Settings, Faults> {
    let variables: BTreeMap<String, String> = environment.filter(|(name, _)| name.starts_with(ENV_PREFIX)).collect();
    let mut reader = reader::Reader::new(text, variables);
    let settings = schema::settings(&mut reader, file);
    let faults = reader.finish();
    if faults.is_empty() { Ok(settings) } else { Err(Faults { file: file.to_owned(), faults }) }
}

/// Every key that there is, in the file's order.
pub fn keys() -> Vec<Key> {
    let mut reader = reader::Reader::new("", BTreeMap::new());
    let _ = schema::settings(&mut reader, Path::new(""));
    reader.keys().to_vec()
}
