//! "Did you mean": the nearest known word.

/// The known word nearest to `given`, if one is near enough to be meant.
pub(super) fn nearest<'a>(given: &str, known: impl IntoIterator<Item = &'a str>) -> Option<&'a str> {
    // Longer texts are no typing mistakes, and the distance costs the product of the lengths.
    if given.is_empty() || given.len() > 64 {
        return None;
    }
    let plain = normal(given);
    // Enough for any list that a person wrote.
    let known: Vec<&str> = known.into_iter().take(500).collect();
    // `prod` for `production`.
    let mut longer = known
        .iter()
        .filter(|word| plain.len() >= 3 && normal(word).starts_with(&plain));
    if let (Some(word), None) = (longer.next(), longer.next()) {
        return Some(word);
    }
    known
        .into_iter()
        .map(|word| (distance(&plain, &normal(word)), word))
        .filter(|&(distance, word)| distance <= 1 + word.chars().count().min(plain.len()) / 4)
        .min_by_key(|&(distance, _)| distance)
        .map(|(_, word)| word)
}

/// `did you mean …`, or the list of what is known.
pub(super) fn did_you_mean<'a>(
    given: &str,
    known: impl IntoIterator<Item = &'a str> + Clone,
) -> Option<String> {
    if let Some(word) = nearest(given, known.clone()) {
        return Some(format!("did you mean `{word}`?"));
    }
    one_of(known)
}

/// `one of …`
pub(super) fn one_of<'a>(known: impl IntoIterator<Item = &'a str>) -> Option<String> {
    let mut words: Vec<String> = known
        .into_iter()
        .take(21)
        .map(|word| format!("`{word}`"))
        .collect();
    match words.len() {
        0 => return None,
        1 => return Some(format!("only {} is possible here", words[0])),
        21 => words[20] = "…".to_owned(),
        _ => {}
    }
    Some(format!("one of {}", words.join(", ")))
}

/// Case and the choice between `-` and `_` are not worth a difference.
fn normal(word: &str) -> Vec<char> {
    word.chars()
        .map(|c| if c == '_' { '-' } else { c.to_ascii_lowercase() })
        .collect()
}

/// Edits (insert, delete, replace, swap of neighbours) from one word to the other: optimal string alignment.
fn distance(a: &[char], b: &[char]) -> usize {
    let mut before_last: Vec<usize> = Vec::new();
    let mut last: Vec<usize> = (0..=b.len()).collect();
    for (i, &x) in a.iter().enumerate() {
        let mut row = vec![i + 1];
        for (j, &y) in b.iter().enumerate() {
            let mut best = (last[j] + usize::from(x != y))
                .min(last[j + 1] + 1)
                .min(row[j] + 1);
            if i > 0 && j > 0 && x == b[j - 1] && a[i - 1] == y {
                best = best.min(before_last[j - 1] + 1);
            }
            row.push(best);
        }
        before_last = std::mem::replace(&mut last, row);
    }
    last[b.len()]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_nearest_word_is_found() {
        let known = [
            "objectives",
            "services",
            "endpoints",
            "rto",
            "rpo",
            "insert-missing",
        ];
        assert_eq!(nearest("objectivs", known), Some("objectives"));
        assert_eq!(nearest("Services", known), Some("services"));
        assert_eq!(nearest("insert_missing", known), Some("insert-missing"));
        assert_eq!(nearest("rot", known), Some("rto"));
        assert_eq!(nearest("endpionts", known), Some("endpoints"));
        assert_eq!(nearest("obj", known), Some("objectives"));
        assert_eq!(nearest("colour", known), None);
        assert_eq!(nearest("", known), None);
    }

    #[test]
    fn distances_count_edits() {
        let d = |a: &str, b: &str| distance(&normal(a), &normal(b));
        assert_eq!(d("abc", "abc"), 0);
        assert_eq!(d("abc", "acb"), 1);
        assert_eq!(d("", "abc"), 3);
        assert_eq!(d("kitten", "sitting"), 3);
    }
}
