CREATE TABLE item(id INTEGER PRIMARY KEY, name TEXT, price REAL, kind INTEGER);
WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n WHERE i < 30000)
  INSERT INTO item SELECT i, 'item ' || (i * 7919 % 30011), (i * 31 % 997) / 4.0, i % 23 FROM n;
CREATE INDEX by_name ON item(name);
SELECT count(*), sum(price) FROM item;
SELECT kind, count(*), max(price), min(name) FROM item GROUP BY kind ORDER BY 2 DESC, 1 LIMIT 5;
SELECT count(*) FROM item a JOIN item b ON b.name = 'item ' || a.id WHERE a.kind < 12 AND b.kind > 4;
UPDATE item SET price = price * 1.5 WHERE kind IN (3, 5, 7);
DELETE FROM item WHERE id % 11 = 0;
SELECT count(*), sum(price), max(length(name)) FROM item WHERE name LIKE '%77%';
