//! A shared library that the server cannot load: an image without it, or a setting that names it
//! wrongly. Whatever needs it fails, and the data is as it was.

use crate::postgres::{missing_library, quote_ident};

/// What is missing, and what to type.
pub(crate) struct Missing {
    pub explanation: String,
    pub next: Vec<String>,
}

/// What an error says of a library; `database` where the error is one database's alone, and
/// `container` the server's.
pub(crate) fn of(text: &str, database: Option<&str>, container: &str) -> Option<Missing> {
    let library = missing_library(text)?;
    let which = database.map_or_else(String::new, |d| format!(" in database {d}"));
    let image =
        "# or run the image that has the library: the one before, or the same with the extension's package";
    // Functions name theirs so, or by its whole path; a setting by its name alone.
    let by_object = library.contains('/') && !text.starts_with("FATAL");
    Some(if by_object {
        Missing {
            explanation: format!(
                "functions of an extension{which} need the library {library}, which the server's image does not \
                 have or cannot load; that is not damage"
            ),
            next: vec![
                format!(
                    "docker inspect --format '{{{{.Config.Image}}}}' {container}    # which image is it?"
                ),
                image.into(),
            ],
        }
    } else {
        let reset = database.map(|d| {
            format!(
                "alter database {} reset session_preload_libraries;    -- from another database, where the setting is \
                 this one's",
                quote_ident(d)
            )
        });
        let mut next = vec![
            "select * from pg_db_role_setting;    -- who set it? Get in with PGOPTIONS='-c session_preload_libraries='"
                .into(),
        ];
        next.extend(reset);
        next.push(format!(
            "alter system reset session_preload_libraries;    -- or take it out of postgresql.conf; then: docker kill \
             --signal HUP {container}"
        ));
        next.push(image.into());
        Missing {
            explanation: format!(
                "a setting (session_preload_libraries, most often) names the library {library}{which}, which the \
                 server's image does not have or cannot load; that is not damage"
            ),
            next,
        }
    })
}

#[cfg(test)]
mod tests {
    use super::of;

    #[test]
    fn a_setting_is_told_from_an_extension() {
        let setting = "FATAL 58P01: could not access file \"nolib\": No such file or directory";
        let missing = of(setting, Some("app"), "db").unwrap();
        assert!(missing.explanation.contains("library nolib in database app"));
        let next = missing.next.join("\n");
        assert!(
            next.contains("alter database \"app\" reset session_preload_libraries"),
            "{next}"
        );
        assert!(
            !of(setting, None, "db")
                .unwrap()
                .next
                .join("\n")
                .contains("alter database")
        );
        let object = "ERROR 58P01: could not access file \"$libdir/citext\": No such file or directory";
        let missing = of(object, Some("app"), "db").unwrap();
        assert!(missing.explanation.contains("$libdir/citext"));
        assert!(!missing.next.join("\n").contains("reset"), "no setting names it");
        assert!(of("ERROR XX001: invalid page in block 1", None, "db").is_none());
    }
}
