//! Dates for `strftime_now`: UTC, in English, with C's format letters.

use std::time::{SystemTime, UNIX_EPOCH};

const MONTHS: [&str; 12] = [
    "January",
    "February",
    "March",
    "April",
    "May",
    "June",
    "July",
    "August",
    "September",
    "October",
    "November",
    "December",
];
const DAYS: [&str; 7] = ["Sunday", "Monday", "Tuesday", "Wednesday", "Thursday", "Friday", "Saturday"];

/// A moment, split into year, month, day and so on.
struct Moment {
    /// Seconds since 1970.
    unix: i64,
    year: i64,
    /// From 1.
    month: i64,
    /// From 1.
    day: i64,
    /// From 1 to 366.
    day_of_year: i64,
    /// From 0, Sunday.
    weekday: i64,
    hour: i64,
    minute: i64,
    second: i64,
}

impl Moment {
    fn new(time: SystemTime) -> Self {
        let unix = match time.duration_since(UNIX_EPOCH) {
            Ok(after) => i64::try_from(after.as_secs()).unwrap_or(i64::MAX),
            Err(before) => {
                let before = before.duration();
                let seconds = i64::try_from(before.as_secs()).unwrap_or(i64::MAX);
                seconds.saturating_add(i64::from(before.subsec_nanos() > 0)).saturating_neg()
            }
        };
        // This range of some 290 million years in both directions is enough, and overflows nothing.
        let unix = unix.clamp(-(1 << 53), 1 << 53);
        let (days, seconds) = (unix.div_euclid(86400), unix.rem_euclid(86400));
        // Days are counted in eras of 400 years that begin on 1 March, so that a leap day is the
        // last day of its year.
        let shifted = days + 719_468;
        let (era, day_of_era) = (shifted.div_euclid(146_097), shifted.rem_euclid(146_097));
        let year_of_era = (day_of_era - day_of_era / 1460 + day_of_era / 36_524 - day_of_era / 146_096) / 365;
        let day_of_march_year = day_of_era - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
        let march_month = (5 * day_of_march_year + 2) / 153;
        let day = day_of_march_year - (153 * march_month + 2) / 5 + 1;
        let month = if march_month < 10 { march_month + 3 } else { march_month - 9 };
        let year = era * 400 + year_of_era + i64::from(month <= 2);
        let is_leap = year % 4 == 0 && (year % 100 != 0 || year % 400 == 0);
        let day_of_year = if month > 2 { day_of_march_year + 60 + i64::from(is_leap) } else { day_of_march_year - 305 };
        Self {
            unix,
            year,
            month,
            day,
            day_of_year,
            weekday: (days + 4).rem_euclid(7),
            hour: seconds / 3600,
            minute: seconds / 60 % 60,
            second: seconds % 60,
        }
    }

    fn month_name(&self) -> &'static str {
        usize::try_from(self.month - 1).ok().and_then(|month| MONTHS.get(month)).unwrap_or(&"")
    }

    fn day_name(&self) -> &'static str {
        usize::try_from(self.weekday).ok().and_then(|day| DAYS.get(day)).unwrap_or(&"")
    }
}

/// C's `strftime`. `%-d` and the like leave out the leading zero. `None` where the format has an
/// unknown letter.
pub(super) fn strftime(time: SystemTime, format: &str) -> Option<String> {
    let moment = Moment::new(time);
    let mut out = String::new();
    let mut chars = format.chars();
    while let Some(c) = chars.next() {
        if c != '%' {
            out.push(c);
            continue;
        }
        let mut letter = chars.next();
        let padded = letter != Some('-');
        if !padded {
            letter = chars.next();
        }
        out.push_str(&field(&moment, letter?, padded)?);
    }
    Some(out)
}

fn field(moment: &Moment, letter: char, padded: bool) -> Option<String> {
    let digits = |value: i64, width: usize| if padded { format!("{value:0width$}") } else { value.to_string() };
    let short = |name: &str| name.chars().take(3).collect::<String>();
    let hour12 = (moment.hour + 11) % 12 + 1;
    let both = |letters: &[char], separator: &str| {
        let fields: Option<Vec<_>> = letters.iter().map(|letter| field(moment, *letter, true)).collect();
        fields.map(|fields| fields.join(separator))
    };
    Some(match letter {
        'Y' => moment.year.to_string(),
        'y' => digits(moment.year.rem_euclid(100), 2),
        'm' => digits(moment.month, 2),
        'd' => digits(moment.day, 2),
        'e' => format!("{:2}", moment.day),
        'H' => digits(moment.hour, 2),
        'I' => digits(hour12, 2),
        'M' => digits(moment.minute, 2),
        'S' => digits(moment.second, 2),
        'f' => "000000".into(),
        'p' => if moment.hour < 12 { "AM" } else { "PM" }.into(),
        'B' => moment.month_name().into(),
        'b' | 'h' => short(moment.month_name()),
        'A' => moment.day_name().into(),
        'a' => short(moment.day_name()),
        'j' => digits(moment.day_of_year, 3),
        'w' => moment.weekday.to_string(),
        'u' => ((moment.weekday + 6) % 7 + 1).to_string(),
        'U' => digits((moment.day_of_year + 6 - moment.weekday) / 7, 2),
        'W' => digits((moment.day_of_year + 6 - (moment.weekday + 6) % 7) / 7, 2),
        's' => moment.unix.to_string(),
        // Python leaves these empty for times without a zone, like those of `datetime.now()`.
        'Z' | 'z' => String::new(),
        'F' => both(&['Y', 'm', 'd'], "-")?,
        'D' | 'x' => both(&['m', 'd', 'y'], "/")?,
        'T' | 'X' => both(&['H', 'M', 'S'], ":")?,
        'R' => both(&['H', 'M'], ":")?,
        'c' => both(&['a', 'b', 'e', 'T', 'Y'], " ")?,
        'n' => "\n".into(),
        't' => "\t".into(),
        '%' => "%".into(),
        _ => return None,
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::Duration;

    #[test]
    fn formats_like_c() {
        let at = |seconds| UNIX_EPOCH + Duration::from_secs(seconds);
        let all = "%Y-%m-%d %H:%M:%S %y %B %b %A %a %j %I%p %e %-d %-m %U %W %w %u %%";
        let cases = [
            (0, "1970-01-01 00:00:00 70 January Jan Thursday Thu 001 12AM  1 1 1 00 00 4 4 %"),
            (951_825_599, "2000-02-29 11:59:59 00 February Feb Tuesday Tue 060 11AM 29 29 2 09 09 2 2 %"),
            (1_721_952_001, "2024-07-26 00:00:01 24 July Jul Friday Fri 208 12AM 26 26 7 29 30 5 5 %"),
            (4_102_444_799, "2099-12-31 23:59:59 99 December Dec Thursday Thu 365 11PM 31 31 12 52 52 4 4 %"),
        ];
        for (seconds, text) in cases {
            assert_eq!(strftime(at(seconds), all).unwrap(), text);
        }
        assert_eq!(
            strftime(UNIX_EPOCH - Duration::from_secs(1), "%c %F %D %R").unwrap(),
            "Wed Dec 31 23:59:59 1969 1969-12-31 12/31/69 23:59"
        );
        for broken in ["%", "%-", "%Q", "%é"] {
            assert!(strftime(UNIX_EPOCH, broken).is_none());
        }
    }
}
