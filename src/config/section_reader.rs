//! Reads the keys of one section by their types.

use std::{fmt::Display, ops::RangeInclusive, time::Duration};

use serde::de::DeserializeOwned;

use super::{legal, reader::KeyReader};

/// A section whose keys are read. Each call declares one key: its name, its default as the file would have it, and the
/// text that says what is legal.
pub(super) struct SectionReader<'r, 't> {
    reader: &'r mut KeyReader<'t>,
    section: &'static str,
}

impl<'r, 't> SectionReader<'r, 't> {
    pub(super) fn new(reader: &'r mut KeyReader<'t>, section: &'static str) -> Self {
        Self { reader, section }
    }

    /// Reads a key that `check` converts; see [`KeyReader::key`].
    pub(super) fn key<T: DeserializeOwned, U>(
        &mut self,
        name: &'static str,
        default: T,
        legal: &'static str,
        check: impl Fn(T) -> Result<U, String>,
    ) -> U {
        self.reader.key(self.section, name, default, legal, check)
    }

    /// Reads a key that has no default; see [`KeyReader::required`].
    pub(super) fn required<T: DeserializeOwned, U: Default>(
        &mut self,
        name: &'static str,
        legal: &'static str,
        check: impl Fn(T) -> Result<U, String>,
    ) -> U {
        self.reader.required(self.section, name, legal, check)
    }

    /// Reads a key whose type alone says what is legal, such as one of several words.
    pub(super) fn value<T: DeserializeOwned>(&mut self, name: &'static str, default: T, legal: &'static str) -> T {
        self.key(name, default, legal, Ok)
    }

    /// Reads `true` or `false`.
    pub(super) fn flag(&mut self, name: &'static str, default: bool) -> bool {
        self.value(name, default, "true or false")
    }

    /// Reads a string.
    pub(super) fn text(&mut self, name: &'static str, default: &str, legal: &'static str) -> String {
        self.value(name, default.to_owned(), legal)
    }

    /// Reads a number in a range.
    pub(super) fn number<N>(
        &mut self,
        name: &'static str,
        default: i64,
        legal: &'static str,
        range: RangeInclusive<i64>,
    ) -> N
    where
        N: TryFrom<i64, Error: Display>,
    {
        self.key(name, default, legal, legal::number(range))
    }

    /// Reads a duration in a range.
    pub(super) fn duration(
        &mut self,
        name: &'static str,
        default: &str,
        legal: &'static str,
        range: RangeInclusive<Duration>,
    ) -> Duration {
        self.key(name, default.to_owned(), legal, legal::duration(range))
    }

    /// Reads a duration in a range, or `"0s"`, which is `None`: never.
    pub(super) fn duration_or_never(
        &mut self,
        name: &'static str,
        default: &str,
        legal: &'static str,
        range: RangeInclusive<Duration>,
    ) -> Option<Duration> {
        self.key(name, default.to_owned(), legal, legal::duration_or_never(range))
    }

    /// Reports a key that does not fit another; see [`KeyReader::conflict`].
    pub(super) fn conflict(&mut self, name: &'static str, what: &str) {
        self.reader.conflict(self.section, name, what);
    }
}
