//! Headers of a message.

use std::fmt;
use std::sync::Arc;

/// The headers of a message: an ordered multi-map of text, shared between clones until changed.
///
/// Names keep their case and are compared exactly. An empty map costs no allocation.
///
/// ```
/// use jobs_core::Headers;
///
/// let mut headers = Headers::new();
/// headers.append("tenant", "acme");
/// headers.append("tag", "a");
/// headers.append("tag", "b");
/// assert_eq!(headers.get("tenant"), Some("acme"));
/// assert_eq!(headers.get_all("tag").collect::<Vec<_>>(), ["a", "b"]);
/// ```
#[derive(Clone, Default, PartialEq, Eq)]
pub struct Headers(Option<Arc<Vec<(String, String)>>>);

impl Headers {
    /// No headers.
    #[must_use]
    pub const fn new() -> Self {
        Self(None)
    }

    /// Number of entries, repeated names included.
    #[must_use]
    pub fn len(&self) -> usize {
        self.entries().len()
    }

    /// True if there is no entry.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.entries().is_empty()
    }

    /// The first value of `name`.
    #[must_use]
    pub fn get(&self, name: &str) -> Option<&str> {
        self.get_all(name).next()
    }

    /// All values of `name`, in the order they were added.
    pub fn get_all(&self, name: &str) -> impl Iterator<Item = &str> {
        self.iter().filter(move |(key, _)| *key == name).map(|(_, value)| value)
    }

    /// All entries in the order they were added.
    pub fn iter(&self) -> impl ExactSizeIterator<Item = (&str, &str)> {
        self.entries().iter().map(|(name, value)| (name.as_str(), value.as_str()))
    }

    /// Adds a value, keeping those the name already has.
    pub fn append(&mut self, name: impl Into<String>, value: impl Into<String>) {
        self.entries_mut().push((name.into(), value.into()));
    }

    /// Sets the only value of `name`, in the place of its first one.
    pub fn set(&mut self, name: impl Into<String>, value: impl Into<String>) {
        let (name, value) = (name.into(), value.into());
        let entries = self.entries_mut();
        match entries.iter().position(|(key, _)| *key == name) {
            None => entries.push((name, value)),
            Some(first) => {
                let mut index = 0;
                entries.retain(|(key, _)| {
                    index += 1;
                    index - 1 <= first || *key != name
                });
                entries[first].1 = value;
            }
        }
    }

    /// Removes all values of `name`.
    pub fn remove(&mut self, name: &str) {
        if self.get(name).is_some() {
            self.entries_mut().retain(|(key, _)| key != name);
        }
    }

    fn entries(&self) -> &[(String, String)] {
        self.0.as_deref().map_or(&[], Vec::as_slice)
    }

    fn entries_mut(&mut self) -> &mut Vec<(String, String)> {
        Arc::make_mut(self.0.get_or_insert_default())
    }
}

impl<N: Into<String>, V: Into<String>> FromIterator<(N, V)> for Headers {
    fn from_iter<I: IntoIterator<Item = (N, V)>>(entries: I) -> Self {
        let entries: Vec<_> = entries.into_iter().map(|(n, v)| (n.into(), v.into())).collect();
        Self((!entries.is_empty()).then(|| Arc::new(entries)))
    }
}

/// Shows the names only: values may be confidential.
impl fmt::Debug for Headers {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_list().entries(self.iter().map(|(name, _)| name)).finish()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_clone_does_not_see_later_changes() {
        let mut headers: Headers = [("a", "1")].into_iter().collect();
        let before = headers.clone();
        headers.set("a", "2");
        assert_eq!((before.get("a"), headers.get("a")), (Some("1"), Some("2")));
    }

    #[test]
    fn set_keeps_the_place_and_drops_repetitions() {
        let mut headers: Headers =
            [("a", "1"), ("b", "2"), ("a", "3"), ("c", "4")].into_iter().collect();
        headers.set("a", "5");
        assert_eq!(headers.iter().collect::<Vec<_>>(), [("a", "5"), ("b", "2"), ("c", "4")]);
        headers.remove("b");
        assert_eq!(headers.len(), 2);
    }

    #[test]
    fn debug_shows_names_only() {
        let headers: Headers = [("token", "hunter2")].into_iter().collect();
        assert_eq!(format!("{headers:?}"), r#"["token"]"#);
    }
}
