//! What `CREATE DATABASE` must say for a new database to be like one that is there.

use super::{Row, quote_ident, quote_literal};

/// Properties that a database has from its making, and that no dump without `--create` carries.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Properties {
    /// `pg_encoding_to_char`, as `UTF8`.
    pub encoding: String,
    /// `LC_COLLATE`.
    pub collate: String,
    /// `LC_CTYPE`.
    pub ctype: String,
    /// The owner.
    pub owner: String,
    /// `datlocprovider`: `c`, `i`, `b`; none before version 15.
    pub provider: Option<String>,
    /// The locale of a provider other than the C library.
    pub locale: Option<String>,
    /// Rules beside an ICU locale.
    pub icu_rules: Option<String>,
    /// Its tablespace.
    pub tablespace: Option<String>,
}

impl Properties {
    /// The question that [`Properties::of`] reads the answer to. Columns that only some versions
    /// have are taken out of the row as a whole.
    #[must_use]
    pub fn query(database: &str) -> String {
        format!(
            "select pg_catalog.pg_encoding_to_char(encoding), datcollate, datctype, \
             pg_catalog.pg_get_userbyid(datdba), to_jsonb(d) ->> 'datlocprovider', \
             coalesce(to_jsonb(d) ->> 'daticulocale', to_jsonb(d) ->> 'datlocale'), to_jsonb(d) ->> 'daticurules', \
             (select t.spcname from pg_catalog.pg_tablespace t where t.oid = d.dattablespace) \
             from pg_catalog.pg_database d where datname = {}",
            quote_literal(database)
        )
    }

    /// Of the row that [`Properties::query`] brings.
    #[must_use]
    pub fn of(row: &Row) -> Self {
        let opt = |column| row.opt(column).map(str::to_owned);
        Self {
            encoding: row.text(0).to_owned(),
            collate: row.text(1).to_owned(),
            ctype: row.text(2).to_owned(),
            owner: row.text(3).to_owned(),
            provider: opt(4),
            locale: opt(5),
            icu_rules: opt(6),
            tablespace: opt(7),
        }
    }

    /// `CREATE DATABASE`, without the tablespace. Of `template0`: another template may hold
    /// objects that a dump brings too, and only this one lets the locale be chosen. The provider
    /// is always said, or the template's would be taken.
    #[must_use]
    pub fn create(&self, name: &str) -> String {
        let mut sql = format!(
            "create database {} with template template0 encoding {} lc_collate {} lc_ctype {} owner {}",
            quote_ident(name),
            quote_literal(&self.encoding),
            quote_literal(&self.collate),
            quote_literal(&self.ctype),
            quote_ident(&self.owner),
        );
        let (provider, locale) = match self.provider.as_deref() {
            Some("c") => ("libc", None),
            Some("i") => ("icu", Some("icu_locale")),
            Some("b") => ("builtin", Some("builtin_locale")),
            // Before version 15 there is one provider and no word for it; of one that is not
            // known the server's own choice is as good as any.
            _ => return sql,
        };
        sql.push_str(" locale_provider ");
        sql.push_str(provider);
        for (option, value) in [
            (locale, &self.locale),
            (
                locale.filter(|_| provider == "icu").map(|_| "icu_rules"),
                &self.icu_rules,
            ),
        ] {
            if let (Some(option), Some(value)) = (option, value) {
                sql.push_str(&format!(" {option} {}", quote_literal(value)));
            }
        }
        sql
    }

    /// ` tablespace …`; empty where it is not known.
    #[must_use]
    pub fn in_tablespace(&self) -> String {
        self.tablespace
            .as_ref()
            .map_or_else(String::new, |name| format!(" tablespace {}", quote_ident(name)))
    }
}

/// A database as PostgreSQL's programs take it with `--dbname`: a name with `=` in it, or one that
/// begins like an address, would be read as something else.
#[must_use]
pub fn conninfo(database: &str) -> String {
    format!("dbname='{}'", database.replace('\\', r"\\").replace('\'', r"\'"))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn properties(provider: Option<&str>, locale: Option<&str>, rules: Option<&str>) -> Properties {
        Properties {
            encoding: "UTF8".into(),
            collate: "en_US.utf8".into(),
            ctype: "C".into(),
            owner: "app owner".into(),
            provider: provider.map(str::to_owned),
            locale: locale.map(str::to_owned),
            icu_rules: rules.map(str::to_owned),
            tablespace: Some("fast".into()),
        }
    }

    #[test]
    fn the_provider_is_said_wherever_there_is_one() {
        let begin = "create database \"side\" with template template0 encoding 'UTF8' lc_collate 'en_US.utf8' \
                     lc_ctype 'C' owner \"app owner\"";
        for (provider, locale, rules, end) in [
            (None, None, None, ""),
            (Some("c"), None, None, " locale_provider libc"),
            (
                Some("i"),
                Some("de-DE"),
                None,
                " locale_provider icu icu_locale 'de-DE'",
            ),
            (
                Some("i"),
                Some("und"),
                Some("&a < 'b'"),
                " locale_provider icu icu_locale 'und' icu_rules '&a < ''b'''",
            ),
            (
                Some("b"),
                Some("C.UTF-8"),
                None,
                " locale_provider builtin builtin_locale 'C.UTF-8'",
            ),
        ] {
            let made = properties(provider, locale, rules);
            assert_eq!(made.create("side"), format!("{begin}{end}"));
            assert_eq!(made.in_tablespace(), " tablespace \"fast\"");
        }
        assert_eq!(Properties::default().in_tablespace(), "");
    }

    #[test]
    fn a_name_is_never_read_as_an_address() {
        assert_eq!(conninfo("app"), "dbname='app'");
        assert_eq!(conninfo("host=evil"), "dbname='host=evil'");
        assert_eq!(conninfo(r"o'b\c"), r"dbname='o\'b\\c'");
    }
}
